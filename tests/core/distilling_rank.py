"""Gradients of distillation, and the program of one of several processes that share a batch.

`python -m tests.core.distilling_rank RANK OF MEETING_FILE TEACHER OUT` writes the terms and gradients of its process.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from dsd_core.data import open_dataset
from dsd_core.data.loader import Batch, train_batches
from dsd_core.distill.task import DistillTask
from dsd_core.learner import build_learner
from dsd_core.models.frozen import Frozen
from dsd_core.spec import JobSpec
from dsd_core.teacher import load_teacher
from tests.core.small import CLASSES, small_spec

LOSSES = [
    {"loss": "ce"},
    {"loss": "psd"},
    {"loss": "csd"},
    {"loss": "cwd", "on": "feature"},
    {"loss": "fitnet", "on": "taps"},
]


def spec_of(teacher: Path) -> JobSpec:
    return small_spec(teacher, losses=LOSSES, train__batch=2)


def task_of(teacher: Path) -> DistillTask:
    spec = spec_of(teacher)
    assert spec.teacher is not None
    frozen = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    return build_learner(spec, spec.losses, frozen, len(CLASSES), torch.device("cpu"), None).task


def batch_of(teacher: Path, rank: int) -> Batch:
    """The images of one process."""
    data = open_dataset("streets", None, "train", (32, 48))
    return list(train_batches(data, spec_of(teacher).train, 0, 2))[rank]


def outcome(task: DistillTask, run: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Each term, and the gradient of their sum at each learned parameter, where `run` is the task or wraps it."""
    terms, _ = run.train()(batch)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {f"gradient.{place}": p.grad for place, p in enumerate(task.learned()) if p.grad is not None}
    return {name: value.detach().contiguous() for name, value in (terms | gradients).items()}


if __name__ == "__main__":
    rank, of, meeting, weights, out = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(of), timeout=timedelta(seconds=120)
    )
    task = task_of(Path(weights))
    wrapped = nn.parallel.DistributedDataParallel(task)
    save_file(outcome(task, wrapped, batch_of(Path(weights), int(rank))), out)
    dist.destroy_process_group()
