"""A step with a warm store, one that fills it, one with the teacher in the loop, and one without a teacher.

All are real trainings in one process that take their steps in turn. A round is an epoch, with a process and a store of
its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.bench.measure import Spent, figure, per_step, ratio
from benchmarks.bench.setting import WORDS, distilling, plain
from benchmarks.bench.training import Job, Trainings
from benchmarks.pieces import STUDENT
from dsd_core.signals.store import Store

KIND = "image"
STEPS = 44  # of an epoch of CamVid, without the first, which builds the student


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found = compare(arguments, folder, STUDENT, STEPS)
    return {"setting": f"{WORDS}; signals: {KIND}; {STEPS} steps a round, with loading and logging", **found}


def compare(arguments: argparse.Namespace, folder: Path, student: Any, steps: int) -> dict[str, Any]:
    """The steps of one student in all four ways."""
    data, teacher, network = arguments.data, arguments.teacher, {"student": {"network": student}}
    kept, store = distilling(data, teacher, KIND, **network), folder / "store"
    fill(kept, folder / "fill", store)
    jobs = {
        "warm": kept,
        "loop": distilling(data, teacher, "off", **network),
        "plain": plain(data, **network),
        "first": kept,
    }
    spent: dict[str, list[Spent]] = {name: [] for name in jobs}
    for number in range(arguments.rounds):
        stores = {"warm": store, "first": folder / f"store-{number}"}
        run = {name: Job(spec, folder / f"{name}-{number}", stores.get(name)) for name, spec in jobs.items()}
        with Trainings(run) as together:
            together.steps()
            for name, taken in together.steps(steps).items():
                spent[name].append(taken)
    stores["first"] = folder / "store-alone"
    peaks = {name: peak_mib(Job(spec, folder / f"{name}-alone", stores.get(name))) for name, spec in jobs.items()}
    share = [1 - plain.cpu / warm.cpu for warm, plain in zip(spent["warm"], spent["plain"], strict=True)]
    return {
        "figures": {
            "warm_store_over_plain": ratio(spent["warm"], spent["plain"]),
            "first_pass_over_teacher_in_loop": ratio(spent["first"], spent["loop"]),
            "teacher_in_loop_over_plain": ratio(spent["loop"], spent["plain"]),
            "dsd_share_of_step": figure(
                share, of="CPU seconds", meaning="1 - step without a teacher / with warm store"
            ),
        },
        "steps": {name: {**per_step(taken, steps), "peak_mib": peaks[name]} for name, taken in spent.items()},
        "stored_bytes": sum(entry.bytes for entry in Store(store).entries()),
    }


def fill(spec: dict[str, Any], out: Path, store: Path) -> None:
    """Train until the store has every signal."""
    with Trainings({"fills": Job(spec, out, store)}) as alone:
        while not (held := Store(store).entries()) or any(entry.filled < entry.records for entry in held):
            alone.steps()


def peak_mib(job: Job) -> int:
    """The most memory that its first steps take where it has a process to itself."""
    with Trainings({"alone": job}) as alone:
        alone.steps(3)
        return round(alone.peak_mib)
