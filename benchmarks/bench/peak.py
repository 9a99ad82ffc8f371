"""How much of what the processor can multiply a step makes use of: operations a second beside those of a matmul.

Steps and products of large float32 matrices take turns in one process of one thread. Operations are those of
convolutions and matrix products, two a multiply-add; a backward pass has twice those of the forward pass. Loading is
not in the steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench.learners import learner_of
from benchmarks.bench.measure import Spent, figure, per_step
from benchmarks.bench.setting import WORDS, distilling, plain
from dsd_core.data.loader import Batch, train_batches
from dsd_core.learner import Learner
from dsd_core.spec import parse_spec

SIDE, PRODUCTS = 2048, 4  # of the matrices, and how many in a round
STEPS = 8  # of each in a round
RATE = 1e-4


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    specs = {"plain": plain(arguments.data), "loop": distilling(arguments.data, arguments.teacher, "off")}
    learners, batch = {}, None
    for name, spec in specs.items():
        job = parse_spec(spec)
        run, learners[name] = learner_of(job, folder / name)
        batch = next(train_batches(run.train_set, job.train, 0, 1))
    assert batch is not None
    steps = {name: partial(learner.step, batch, RATE, 1.0) for name, learner in learners.items()}
    flops = operations(learners["plain"], learners["loop"], batch)
    left, right = torch.randn(2, SIDE, SIDE).unbind()
    work = {"matmul": (lambda: left @ right, PRODUCTS), **{name: (step, STEPS) for name, step in steps.items()}}
    spent: dict[str, list[Spent]] = {name: [] for name in work}
    for number in range(arguments.rounds + 1):  # the first one warms up
        for name in work if number % 2 == 0 else reversed(list(work)):
            taken = timed(*work[name])
            if number:
                spent[name].append(taken)
    peaks = [2 * SIDE**3 * PRODUCTS / taken.cpu for taken in spent["matmul"]]
    shares = {
        name: figure(
            [STEPS * flops[name] / taken.cpu / peak for taken, peak in zip(spent[name], peaks, strict=True)],
            of="operations a CPU second",
        )
        for name in steps
    }
    return {
        "setting": f"{WORDS}; matrices of {SIDE}x{SIDE}",
        "figures": {
            "matmul_peak_share": shares["plain"]
            | {"meaning": "step without a teacher", "teacher_in_loop": shares["loop"]}
        },
        "peak_gflop_per_s": figure([peak / 1e9 for peak in peaks], of="CPU seconds"),
        "steps": {name: {**per_step(spent[name], STEPS), "gflop": round(flops[name] / 1e9, 3)} for name in steps},
    }


def operations(plain: Learner, taught: Learner, batch: Batch) -> dict[str, float]:
    """Of a step without and with the teacher in the loop. torch's own count of a backward pass takes grouped
    convolutions for dense ones, so only what both steps have in common is subtracted from it."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        plain.student(batch.images_N3HW)
    counted = {}
    for name, learner in (("plain", plain), ("loop", taught)):
        with FlopCounterMode(display=False) as counter:
            learner.step(batch, RATE, 1.0)
        counted[name] = counter.get_total_flops()
    student = 3.0 * forward.get_total_flops()
    return {"plain": student, "loop": student + counted["loop"] - counted["plain"]}


def timed(work: Callable[[], Any], times: int) -> Spent:
    start = Spent.until_now()
    for _ in range(times):
        work()
    return Spent.until_now() - start
