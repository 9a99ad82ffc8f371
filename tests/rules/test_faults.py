"""Every fault of the matrix has a promise that is tested, and places where processes may fail are named once."""

from __future__ import annotations

import re

from tests.faults.report import MATRIX
from tests.servers import ROOT


def test_every_fault_of_the_matrix_is_claimed_by_a_test() -> None:
    sources = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    claimed = {
        name for text in sources for mark in re.findall(r"mark\.fault\(([^)]*)\)", text) for name in _names(mark)
    }
    assert [fault for fault in MATRIX if fault not in claimed] == []


def test_every_place_where_a_process_may_fail_has_a_name_of_its_own() -> None:
    parts = ("api", "dsd_core", "jobs", "worker")
    sources = (path.read_text() for part in parts for path in (ROOT / part).rglob("*.py"))
    names = [name for text in sources for name in re.findall(r"fault_point\(\"([a-z_.]+)\"\)", text)]
    assert names and len(names) == len(set(names))


def _names(mark: str) -> list[str]:
    return re.findall(r"F[0-9]+", mark)
