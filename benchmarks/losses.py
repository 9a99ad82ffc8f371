"""What each loss costs: operations, CPU seconds and peak memory, forward and backward, beside a training step.

The setting is the field's: crops of 512x512 at stride 8 (64x64 positions), 19 classes, a head feature of 512 channels
in the teacher and 128 in the student, stages of a ResNet-101 and a ResNet-18, two images, channels last in memory as
training has them. Each loss runs in a process of its own with one thread; seconds are the least of several passes. The
step is that of `pspnet_r18` with cross-entropy on the same crops, measured in the same run. Writes
`benchmarks/results/losses.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import dsd_core.distill.losses as L
from benchmarks.pieces import RESULTS, ROOT

IMAGES, CLASSES, SIDE, CROP = 2, 19, 64, 512
BUDGET_S = 4.0


@dataclass(frozen=True)
class Case:
    """A loss on tensors of given channels: `student` and `teacher` list them, `run` gets the tensors of both."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    run: Callable[[list[Tensor], list[Tensor], Tensor], Tensor]
    note: str = ""


def _projected(student: list[Tensor], channels: int) -> Tensor:
    weight = torch.ones(channels, student[0].shape[1], 1, 1)
    return torch.nn.functional.conv2d(student[0], weight)


STAGES_S, STAGES_T = (128, 256, 512), (512, 1024, 2048)
FEATURE, LOGITS = ((128,), (512,)), ((CLASSES,), (CLASSES,))
CASES: dict[str, Case] = {
    "kd": Case(*LOGITS, lambda s, t, y: L.kd(s[0], t[0])),
    "at": Case(*FEATURE, lambda s, t, y: L.at(s[0], t[0])),
    "fitnet": Case(*FEATURE, lambda s, t, y: L.fitnet(_projected(s, 512), t[0]), "with its 1x1 convolution"),
    "skd_pairwise": Case(*FEATURE, lambda s, t, y: L.skd_pairwise(s[0], t[0]), "dense"),
    "skd_pairwise, pool 2": Case(*FEATURE, lambda s, t, y: L.skd_pairwise(s[0], t[0], pool=2)),
    "skd_pairwise, pool half": Case(*FEATURE, lambda s, t, y: L.skd_pairwise(s[0], t[0], pool="half")),
    "ifvd": Case(*FEATURE, lambda s, t, y: L.ifvd(s[0], t[0], y, classes=CLASSES)),
    "cwd": Case(*LOGITS, lambda s, t, y: L.cwd(s[0], t[0])),
    "cwd, feature": Case(*FEATURE, lambda s, t, y: L.cwd(_projected(s, 512), t[0]), "with its 1x1 convolution"),
    "cirkd": Case(*FEATURE, lambda s, t, y: L.cirkd(s[0], t[0]), "4 ordered pairs of images"),
    "dist": Case(*LOGITS, lambda s, t, y: L.dist(s[0], t[0])),
    "psd": Case(STAGES_S, STAGES_T, lambda s, t, y: L.pixel_similarity(s, t), "layers 2 to 4"),
    "csd": Case(*LOGITS, lambda s, t, y: L.category_similarity(s[0], t[0])),
    "psd + csd": Case(
        (*STAGES_S, CLASSES),
        (*STAGES_T, CLASSES),
        lambda s, t, y: L.pixel_similarity(s[:3], t[:3]) + L.category_similarity(s[3], t[3]),
    ),
    "ce": Case((CLASSES,), (), lambda s, t, y: L.ce(s[0], y), "at the grid, for scale"),
    "dice": Case((CLASSES,), (), lambda s, t, y: L.dice(s[0], y), "at the grid"),
}
LEAN_GFLOP = {"ifvd": 0.20, "skd_pairwise": 2.8, "skd_pairwise, pool 2": 1.34, "cirkd": 4 * 21.5 / IMAGES}
"""Forward operations per image of the leanest forms known; docs/methods.md derives them."""


def measure(name: str) -> dict[str, Any]:
    """Operations per image of the forward pass and of both, CPU seconds and peak memory of the batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name]
    student, teacher = (
        [torch.randn(IMAGES, SIDE, SIDE, channels).permute(0, 3, 1, 2) for channels in several]
        for several in (case.student, case.teacher)
    )
    labels = torch.randint(0, CLASSES, (IMAGES, SIDE, SIDE))

    def forward() -> Tensor:
        return case.run([x.detach().requires_grad_() for x in student], teacher, labels)

    with FlopCounterMode(display=False) as forward_flops:
        loss = forward()
    with FlopCounterMode(display=False) as both_flops:
        forward().backward()
    del loss
    with Live() as live:
        forward().backward()
    return {
        "loss": name,
        "note": case.note,
        "forward_gflop": forward_flops.get_total_flops() / IMAGES / 1e9,
        "both_gflop": both_flops.get_total_flops() / IMAGES / 1e9,
        "cpu_seconds": _least_seconds(lambda: forward().backward()),
        "peak_mib": live.peak / 2**20,
    }


def measure_step() -> dict[str, Any]:
    """A training step of pspnet_r18 on the same crops: forward, cross-entropy, backward, SGD."""
    from dsd_core.models import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build("pspnet_r18", CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    images = torch.randn(IMAGES, 3, CROP, CROP).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (IMAGES, CROP, CROP))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        L.ce(network(images), labels).backward()
        optimizer.step()

    with FlopCounterMode(display=False) as flops:
        step()
    seconds = _least_seconds(step, least=2)
    with Live() as live:
        step()
    return {
        "loss": "step of pspnet_r18",
        "note": "cross-entropy alone",
        "forward_gflop": None,
        "both_gflop": flops.get_total_flops() / IMAGES / 1e9,
        "cpu_seconds": seconds,
        "peak_mib": live.peak / 2**20,
    }


def _least_seconds(work: Callable[[], None], least: int = 5) -> float:
    """The least CPU time of `least` passes, or of as many as the budget holds."""
    seconds: list[float] = []
    end = time.perf_counter() + BUDGET_S
    while len(seconds) < least or (time.perf_counter() < end and len(seconds) < 50):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live, and the most there were at once.

    What an operation takes for itself while it runs does not show.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage()._cdata)  # an input, which was there before
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# What the losses cost",
        "",
        f"Made by `{report['command']}` on {report['machine']}. Two images of {CROP}x{CROP} at stride 8, teacher"
        " 512 and student 128 channels, 19 classes, one thread, float32. Operations are per image, two a multiply-add;"
        " matrix products and convolutions alone; seconds, and the most bytes of tensors at once beside the inputs, of"
        " forward and backward for both images."
        " The last column is the share of the CPU time of a training step of `pspnet_r18` on the same crops.",
        "",
        "| loss | forward GFLOP | both GFLOP | lean form, forward | CPU ms | peak MiB | of a step | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["losses"]:
        lean = LEAN_GFLOP.get(row["loss"])
        forward = "" if row["forward_gflop"] is None else f"{row['forward_gflop']:.3f}"
        lines.append(
            f"| {row['loss']} | {forward} | {row['both_gflop']:.3f} | {'' if lean is None else f'{lean:.2f}'} "
            f"| {1000 * row['cpu_seconds']:.1f} | {row['peak_mib']:.1f} | {100 * row['share_of_step']:.3f} % "
            f"| {row['note']} |"
        )
    return "\n".join(lines) + "\n"


def measure_all() -> dict[str, Any]:
    """Every loss and the step, each in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = []
    for name in ("step", *CASES):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.losses", "--one", name],
            env=environment,
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        rows.append(json.loads(done.stdout))
        print(f"{rows[-1]['loss']:26} {1000 * rows[-1]['cpu_seconds']:9.1f} ms", file=sys.stderr, flush=True)
    for row in rows:
        row["share_of_step"] = row["cpu_seconds"] / rows[0]["cpu_seconds"]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return {"command": "make loss-costs", "machine": machine, "losses": [*rows[1:], rows[0]]}


def keep(report: dict[str, Any]) -> None:
    (RESULTS / "losses.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "losses.md").write_text(markdown(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_step() if arguments.one == "step" else measure(arguments.one)))
        return
    report = measure_all()
    keep(report)
    print(json.dumps(report, indent=1) if arguments.json else markdown(report))


if __name__ == "__main__":
    main()
