"""The same as `step`, with ESPNet, the student of the field's comparisons on CamVid: as large, and slower on a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.bench.setting import WORDS
from benchmarks.bench.step import KIND, compare

STEPS = 15
FIGURES = ("warm_store_over_plain", "first_pass_over_teacher_in_loop", "teacher_in_loop_over_plain")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found = compare(arguments, folder, "espnet", STEPS)
    words = WORDS.replace("FPN LCNet-050 of 0.35 M parameters", "ESPNet (p 2, q 8) of 0.35 M parameters")
    setting = f"{words}; signals: {KIND}; {STEPS} steps a round, with loading and logging"
    return {**found, "setting": setting, "figures": {f"espnet_{name}": found["figures"][name] for name in FIGURES}}
