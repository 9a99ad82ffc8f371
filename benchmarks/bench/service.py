"""What the service costs, from `benchmarks/service.py`, whose report it writes too; with one round little of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import service


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    whole = arguments.rounds > 1
    report = service.measure_all(service.FULL if whole else service.QUICK)
    if whole:
        service.keep(report)
    startup = report["startup"]["claim_to_first_step_s"]
    claimed = {
        name: {"value": found["median"], "spread": [found["min"], found["max"]], "rounds": found["runs"]}
        for name, found in startup.items()
    }
    return {"setting": "The API on loopback", "figures": {"claim_to_first_step_s": claimed}, "service": report}
