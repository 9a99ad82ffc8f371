"""`make faults` ends with a table: each fault of the matrix, and whether all promises about it were kept."""

from __future__ import annotations

from collections import defaultdict

import pytest

MATRIX = tuple(f"F{number}" for number in range(1, 44))
WORST = ("failed", "passed", "skipped")

_faults: dict[str, tuple[str, ...]] = {}  # of each test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        _faults[item.nodeid] = tuple(name for mark in item.iter_markers("fault") for name in mark.args)
        unknown = set(_faults[item.nodeid]) - set(MATRIX)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: the matrix has no {sorted(unknown)}.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr != "fault":
        return
    results = results_by_fault(terminalreporter.stats)
    terminalreporter.section("fault matrix")
    for fault in MATRIX:
        found = results.get(fault, {})
        said = next((word for word in WORST if word in found.values()), "no test")
        terminalreporter.write_line(f"{fault:<4} {said:<8} {len(found)} promise{'s' if len(found) != 1 else ''}")


def results_by_fault(stats: dict[str, list[pytest.TestReport]]) -> dict[str, dict[str, str]]:
    """For each fault its tests, and what came of them; an error in the oracles after a case is a failure."""
    results: dict[str, dict[str, str]] = defaultdict(dict)
    for category, word in (("passed", "passed"), ("skipped", "skipped"), ("failed", "failed"), ("error", "failed")):
        for report in stats.get(category, []):
            for fault in _faults.get(report.nodeid, ()):
                results[fault][report.nodeid] = word
    return results
