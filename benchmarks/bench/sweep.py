"""Eight students from one teacher and one store, beside eight without a teacher: the CPU seconds of whole processes.

The store is empty at the start. The students differ in their learning rates; each has a process that trains beside
that of the same student without a teacher, and ends with its score on val. Short trainings show the worst: what a
teacher costs once, and what it costs each job beside its steps, is the larger share of them the shorter they are. What
longer ones come to is computed from the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.measure import figure
from benchmarks.bench.setting import WORDS, distilling, plain, training
from benchmarks.pieces import ROOT, trained
from dsd_core.signals.store import Store

STUDENTS = 8
EPOCHS = 2
LONGER = (5, 10, 20, 40)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {"taught": [], "plain": []}
    for number in range(STUDENTS):
        schedule = {
            "train": training(epochs=EPOCHS, learning_rate=1e-3 * (1 + number)),
            "evaluate": {"every_epochs": EPOCHS, "batch": 8, "pictures": 0},
        }
        jobs = {
            "taught": distilling(arguments.data, arguments.teacher, "image", **schedule),
            "plain": plain(arguments.data, **schedule),
        }
        for name, found in side_by_side(jobs, folder, number).items():
            runs[name].append(found)
    taught, alone = runs["taught"], runs["plain"]
    total = {name: sum(run["cpu_s"] for run in several) for name, several in runs.items()}
    apart = [one["cpu_s"] / other["cpu_s"] for one, other in zip(taught, alone, strict=True)]
    whole = round(total["taught"] / total["plain"], 5)
    return {
        "setting": f"{WORDS}; signals: image; {EPOCHS} epochs",
        "figures": {
            "sweep8_over_plain": {
                **figure(apart, of="CPU seconds"),
                "value": whole,
                "meaning": f"sum over sum, with {EPOCHS} epochs; the rounds are the students, the first of whom fills",
                "by_epochs": {str(EPOCHS): whole} | {str(epochs): longer(taught, alone, epochs) for epochs in LONGER},
            }
        },
        "runs": runs,
    }


def side_by_side(jobs: dict[str, dict[str, Any]], folder: Path, number: int) -> dict[str, dict[str, float]]:
    """Each job in a process, all at once: CPU seconds of the whole, and of its steps."""
    processes = {}
    for name, spec in jobs.items():
        options = {"spec": spec, "out": str(folder / f"{name}-{number}"), "store": str(folder / "store")}
        command = [sys.executable, "-m", "benchmarks.bench.sweep", "--side", json.dumps(options)]
        processes[name] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    found = {}
    for name, process in processes.items():
        _, process.returncode, used = os.wait4(process.pid, 0)
        if process.returncode:
            raise SystemExit(f"Student {number} ({name}) failed.")
        steps = json.loads((folder / f"{name}-{number}" / "steps.json").read_text())
        found[name] = {
            "cpu_s": round(used.ru_utime + used.ru_stime, 3),
            "steps_cpu_s": round(steps, 3),
            "peak_mib": round(used.ru_maxrss / 1024),
        }
    return found


def longer(taught: Sequence[dict[str, float]], alone: Sequence[dict[str, float]], epochs: int) -> float:
    """The ratio with so many epochs: steps of the students who found a full store, and of those without a teacher, are
    taken so often; what is left is taken once."""
    parts = []
    for runs, steady in ((taught, taught[1:]), (alone, alone)):
        epoch = statistics.median(run["steps_cpu_s"] for run in steady) / EPOCHS
        once = sum(run["cpu_s"] for run in runs) - STUDENTS * EPOCHS * epoch
        parts.append(once + STUDENTS * epochs * epoch)
    return round(parts[0] / parts[1], 5)


def run(options: dict[str, Any]) -> None:
    out = Path(options["out"])
    figures, _ = trained(options["spec"], out, store=Store(Path(options["store"])))
    (out / "steps.json").write_text(json.dumps(figures["train_cpu_seconds"]))


if __name__ == "__main__":
    run(json.loads(sys.argv[sys.argv.index("--side") + 1]))
