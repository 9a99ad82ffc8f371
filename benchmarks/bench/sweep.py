"""Eight students from one teacher and one store, beside eight without a teacher: the CPU seconds of whole processes.

The store is empty at the start. The students differ in their learning rates, and each ends with its score on val. A
student's process shares a core with that of the same student without a teacher, so that whatever else is done on the
machine slows both; two cores have such a pair each. What a teacher costs once, and what it costs each job beside its
steps, is the larger share of a training the shorter it is: what other numbers of epochs come to is computed from the
parts.
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
EPOCHS = 6  # as the students of `make compare`
COMPUTED = (2, 20, 40)
PAIRS = 2  # at once, each on a core


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pairs: list[dict[str, dict[str, float]]] = []
    cores = sorted(os.sched_getaffinity(0))[:PAIRS]
    for first in range(0, STUDENTS, len(cores)):
        numbers = range(first, min(first + len(cores), STUDENTS))
        started = [
            _started(jobs(arguments, number), folder, number, core)
            for core, number in zip(cores, numbers, strict=False)
        ]
        pairs += [{name: _ended(process, out) for name, (process, out) in pair.items()} for pair in started]
    runs = {name: [pair[name] for pair in pairs] for name in ("taught", "plain")}
    total = {name: sum(run["cpu_s"] for run in several) for name, several in runs.items()}
    apart = [pair["taught"]["cpu_s"] / pair["plain"]["cpu_s"] for pair in pairs]
    whole = round(total["taught"] / total["plain"], 5)
    computed = {str(epochs): expected(runs["taught"], runs["plain"], epochs, len(cores)) for epochs in COMPUTED}
    return {
        "setting": f"{WORDS}; signals: image; {EPOCHS} epochs",
        "figures": {
            "sweep8_over_plain": {
                **figure(apart, of="CPU seconds"),
                "value": whole,
                "meaning": f"sum over sum, with {EPOCHS} epochs; a round is a student, the first {len(cores)} fill",
                "by_epochs": dict(sorted((computed | {str(EPOCHS): whole}).items(), key=lambda one: int(one[0]))),
            }
        },
        "runs": runs,
    }


def jobs(arguments: argparse.Namespace, number: int) -> dict[str, dict[str, Any]]:
    """A student with the teacher, and without."""
    schedule = {
        "train": training(epochs=EPOCHS, learning_rate=1e-3 * (1 + number)),
        "evaluate": {"every_epochs": EPOCHS, "batch": 8, "pictures": 0},
    }
    return {
        "taught": distilling(arguments.data, arguments.teacher, "image", **schedule),
        "plain": plain(arguments.data, **schedule),
    }


def _started(specs: dict[str, dict[str, Any]], folder: Path, number: int, core: int) -> dict[str, Any]:
    """Each job's process, on one core, and the folder of its run."""
    started = {}
    for name, spec in specs.items():
        out = folder / f"{name}-{number}"
        options = {"spec": spec, "out": str(out), "store": str(folder / "store"), "core": core}
        command = [sys.executable, "-m", "benchmarks.bench.sweep", "--side", json.dumps(options)]
        started[name] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT), out
    return started


def _ended(process: subprocess.Popen[bytes], out: Path) -> dict[str, float]:
    """CPU seconds of the whole, and of its steps."""
    _, process.returncode, used = os.wait4(process.pid, 0)
    if process.returncode:
        raise SystemExit(f"The training in {out} failed.")
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "steps_cpu_s": round(json.loads((out / "steps.json").read_text()), 3),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def expected(taught: Sequence[dict[str, float]], alone: Sequence[dict[str, float]], epochs: int, filling: int) -> float:
    """The ratio with so many epochs. All is counted in epochs of the plain one of a pair, which makes up for a machine
    that is faster at one time than at another; all but the first `filling` students found a full store."""
    units = [run["steps_cpu_s"] / EPOCHS for run in alone]
    trained = [run["steps_cpu_s"] / unit for run, unit in zip(taught, units, strict=True)]
    epoch = statistics.median(trained[filling:]) / EPOCHS
    filled = sum(trained[:filling]) - filling * EPOCHS * epoch
    beside = [
        sum((run["cpu_s"] - run["steps_cpu_s"]) / unit for run, unit in zip(runs, units, strict=True))
        for runs in (taught, alone)
    ]
    return round((beside[0] + filled + STUDENTS * epochs * epoch) / (beside[1] + STUDENTS * epochs), 5)


def run(options: dict[str, Any]) -> None:
    os.sched_setaffinity(0, {options["core"]})
    out = Path(options["out"])
    figures, _ = trained(options["spec"], out, store=Store(Path(options["store"])))
    (out / "steps.json").write_text(json.dumps(figures["train_cpu_seconds"]))


if __name__ == "__main__":
    run(json.loads(sys.argv[sys.argv.index("--side") + 1]))
