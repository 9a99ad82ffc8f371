"""A step with the teacher in the loop, ours and that of torchdistill from the package index.

The same networks with the same weights take the same batches with the same losses and optimiser, on one core at the
same time; loading is not in it. Before anything is timed the first losses must be equal. torchdistill is given its
teacher in eval mode, which it does not see to itself. Images are of 256x320, to which both networks pad 240x320:
padding is something only ours leaves out of the losses. Where torchdistill cannot be installed there are no figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.bench.learners import learner_of
from benchmarks.bench.measure import figure, per_step
from benchmarks.bench.setting import BATCH, distilling, training
from benchmarks.bench.sides import Pace, Side, together
from dsd_core.data import open_dataset
from dsd_core.data.loader import Batch, cached, train_batches
from dsd_core.learner import Learner, build_student
from dsd_core.spec import parse_spec
from dsd_core.teacher import load_teacher

WANTED = ("torchdistill==1.1.5", "opencv-python-headless")
SIZE = (256, 320)
STEPS = 20  # of each in a round
WHO = ("ours", "theirs")
RATE = 1e-4
TAPS = {"student": (1, 2, 4, 5), "teacher": (1, 2, 4, 6)}  # blocks of the encoders that end the stages from 1/4 down
TEMPERATURE = 4.0

Step = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """The same losses as a job file has them and as torchdistill has them."""

    ours: list[dict[str, Any]]
    term: dict[str, Any]
    """Beside the cross-entropy."""
    paths: dict[str, list[str]]
    """Modules of student and teacher that torchdistill is to hook."""


def _block(number: int) -> str:
    return f"encoder.model.blocks.{number}"


def cases() -> dict[str, Case]:
    pairs = {
        f"pair{number}": {
            who: {"path": f"network.{_block(TAPS[who][number])}", "io": "output"} for who in ("student", "teacher")
        }
        for number in range(4)
    }
    paths = {who: [pair[who]["path"] for pair in pairs.values()] for who in ("student", "teacher")}
    output = {f"{who}_module_path": "." for who in ("student", "teacher")}
    output |= {f"{who}_module_io": "output" for who in ("student", "teacher")}
    kd = {"key": "KDLoss", "kwargs": {**output, "temperature": TEMPERATURE, "alpha": 0, "reduction": "batchmean"}}
    at = {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}
    return {
        # The peer's term has no factor T^2 with this alpha, and is a mean over images, not over pixels.
        "ce + kd": Case(
            [{"loss": "ce"}, {"loss": "kd", "temperature": TEMPERATURE}],
            {"criterion": kd, "weight": TEMPERATURE**2 / math.prod(SIZE)},
            {"student": [], "teacher": []},
        ),
        # The peer adds the pairs up where ours is their mean.
        "ce + at": Case(
            [{"loss": "ce"}, {"loss": "at", "weight": 1000.0, "reduction": "mean"}],
            {"criterion": at, "weight": 1000.0 / 4},
            paths,
        ),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    target = folder.parent / "torchdistill"
    install(target)
    found = {}
    where = {"data": str(arguments.data), "teacher": str(arguments.teacher), "target": str(target)}
    for name in cases():
        with ExitStack() as held:
            sides = {
                who: held.enter_context(
                    Side("peer", {"case": name, "who": who, **where, "out": str(folder / name / who)})
                )
                for who in WHO
            }
            losses = {who: side.said["first_loss"] for who, side in sides.items()}
            if not math.isclose(*losses.values(), rel_tol=1e-5):
                raise SystemExit(f"The first losses of {name} differ: {losses}.")
            rounds = [together(sides, STEPS) for _ in range(arguments.rounds)]
            spent = {who: [taken[who] for taken in rounds] for who in WHO}
            apart = [taken["theirs"].cpu / taken["ours"].cpu for taken in rounds]
            found[name] = {
                "first_loss": losses,
                "ratio": figure(apart, of="CPU seconds"),
                "steps": {who: {**per_step(spent[who], STEPS), "peak_mib": round(sides[who].peak_mib)} for who in WHO},
            }
    least = min(found, key=lambda name: found[name]["ratio"]["value"])
    return {
        "setting": f"CamVid at {SIZE[0]}x{SIZE[1]}, batches of {BATCH}, SGD, one thread; {', '.join(WANTED)}",
        "figures": {
            "torchdistill_over_ours": {**found[least]["ratio"], "meaning": f"{least}, the lesser of the cases"}
        },
        "cases": found,
    }


def run(options: dict[str, Any]) -> None:
    """One side of a case: a unit of its work is a step on a batch that is there already."""
    case = cases()[options["case"]]
    spec = parse_spec(job(Path(options["data"]), Path(options["teacher"]), case))
    assert spec.teacher is not None
    torch.set_num_threads(1)
    pace = Pace()
    if options["who"] == "ours":
        run, learner = learner_of(spec, Path(options["out"]))
        dataset, step = run.train_set, our_step(learner)
    else:
        install(Path(options["target"]))
        dataset = cached(open_dataset("camvid", spec.dataset.root, "train", spec.dataset.size))
        torch.manual_seed(spec.train.seed)
        student, _ = build_student(spec, len(dataset.classes))
        step = their_step(student, load_teacher(spec.teacher, dataset.classes)[0], case)
    batches = labelled(train_batches(dataset, spec.train, 0, 10**6))
    first = first_loss(step, next(batches))  # of images that lie alike in memory, or sums would be rounded differently
    if options["who"] == "theirs":
        batches = in_rows(batches)
    goes_on = pace.start(first_loss=first)
    while goes_on:
        loaded = list(itertools.islice(batches, pace.left))
        pace.begin()
        for batch in loaded:
            step(batch)
            goes_on = pace.done()


def first_loss(step: Step, batch: Batch) -> float:
    torch.manual_seed(0)  # the students have dropout
    return step(batch).item()


def install(target: Path) -> None:
    """Bring torchdistill from the package index into a folder of its own, and import from there what is nowhere else.

    Ends the program where the index cannot be reached.
    """
    if not (target / "torchdistill").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--target", str(target), *WANTED], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' and '.join(WANTED)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    sys.path.append(str(target))
    logging.getLogger("torchdistill").setLevel(logging.ERROR)


def job(data: Path, teacher: Path, case: Case) -> dict[str, Any]:
    spec = distilling(data, teacher, "off", losses=case.ours)
    spec["dataset"]["size"] = list(SIZE)
    for who, numbers in TAPS.items():
        spec[who]["taps"] = [_block(number) for number in numbers]
    spec["train"] = training(optimizer="sgd", learning_rate=RATE, weight_decay=0.0, clip_norm=None)
    return spec


def our_step(learner: Learner) -> Step:
    return lambda batch: learner.step(batch, RATE, 1.0)[0]["loss"]


def their_step(student: nn.Module, teacher: nn.Module, case: Case) -> Step:
    """forward_process and post_forward_process, as torchdistill's examples call them."""
    from torchdistill.core.distillation import DistillationBox

    wrapper = {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"uses_label": True},
        },
    }
    ce = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": wrapper,
        "weight": 1.0,
    }
    config = {
        "num_epochs": 1,
        "teacher": {
            "requires_grad": False,
            "forward_proc": "forward_batch_only",
            "forward_hook": {"output": case.paths["teacher"]},
        },
        "student": {"forward_proc": "forward_batch_only", "forward_hook": {"output": case.paths["student"]}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": ce, "taught": case.term}}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9}},
    }
    box = DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1)
    box.teacher_model.eval()
    box.student_model.train()

    def step(batch: Batch) -> torch.Tensor:
        loss = box.forward_process(batch.images_N3HW, batch.labels_NHW, None)
        box.post_forward_process(loss)
        return loss

    return step


def labelled(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches with a class at every pixel, for torchdistill's terms know no pixels that do not count."""
    for batch in batches:
        labels = torch.where(batch.labels_NHW == 255, 0, batch.labels_NHW)
        yield Batch(batch.images_N3HW, labels, batch.indices)


def in_rows(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches with images as torchvision's loaders give them, channel after channel in memory."""
    for batch in batches:
        yield Batch(batch.images_N3HW.contiguous(), batch.labels_NHW, batch.indices)


if __name__ == "__main__":
    run(json.loads(sys.argv[sys.argv.index("--side") + 1]))
