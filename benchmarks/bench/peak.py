"""What of the processor's matmul peak a step makes use of, and where its time goes: `dsd profile`, in rounds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.bench.measure import figure
from benchmarks.bench.setting import WORDS, distilling, plain
from dsd_core.profile import Profile, profile
from dsd_core.spec import parse_spec

STEPS = 10  # of each in a round


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    jobs = {"plain": plain(arguments.data), "loop": distilling(arguments.data, arguments.teacher, "off")}
    specs = {name: parse_spec(job) for name, job in jobs.items()}
    found: dict[str, list[Profile]] = {name: [] for name in specs}
    for _ in range(arguments.rounds):
        for name, spec in specs.items():
            found[name].append(profile(spec, STEPS))
    shares = {name: share_of_peak(rounds) for name, rounds in found.items()}
    return {
        "setting": WORDS,
        "figures": {
            "matmul_peak_share": shares["plain"]
            | {"meaning": "step without a teacher", "teacher_in_loop": shares["loop"]}
        },
        "profiles": {name: rounds[-1].as_dict() for name, rounds in found.items()},
    }


def share_of_peak(rounds: list[Profile]) -> dict[str, Any]:
    return figure([each.matmul_peak_share for each in rounds], of="operations a CPU second")
