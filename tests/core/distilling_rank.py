"""Terms and gradients of distillation, and the program of one of several processes that share a batch.

`python -m tests.core.distilling_rank RANK OF MEETING_FILE TEACHER OUT SIZE PARTS` writes the terms and gradients of
all processes.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as torch_dist
from safetensors.torch import save_file
from torch import Tensor

from dsd_core import dist
from dsd_core.data import open_dataset
from dsd_core.data.loader import Batch, train_batches
from dsd_core.distill.task import DistillTask
from dsd_core.learner import build_learner
from dsd_core.models.frozen import Frozen
from dsd_core.teacher import load_teacher
from tests.core.small import CLASSES, small_spec

LOSSES = [
    {"loss": "ce"},
    {"loss": "psd"},
    {"loss": "csd"},
    {"loss": "kd", "logits_at": "head"},
    {"loss": "cwd", "on": "feature"},
    {"loss": "fitnet", "on": "feature"},
    {"loss": "skd_pairwise", "pool": 2},
]


def task_of(teacher: Path) -> DistillTask:
    """Its student's batch normalisation rests: it would see each process's share alone."""
    spec = small_spec(teacher, losses=LOSSES)
    assert spec.teacher is not None
    frozen = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    return build_learner(spec, spec.losses, frozen, len(CLASSES), torch.device("cpu"), None).task.eval()


def share_of(teacher: Path, rank: int, of: int, size: int = 3) -> Batch:
    """The images of one process, of a batch of `size` whose views have void of different sizes."""
    spec = small_spec(teacher, train__batch=size, train__augment={"scale": [0.3, 1.0]})
    data = open_dataset("streets", None, "train", (32, 48))
    return next(train_batches(data, spec.train, 0, 1, rank=rank, of=of))


def outcome(task: DistillTask, batch: Batch, parts: int = 1) -> dict[str, Tensor]:
    """Each term, and the gradient of their sum at each learned parameter, over all processes and parts."""
    found = [task(part, batch)[0] for part in batch.split(parts)]
    terms = {name: torch.stack([part[name] for part in found]).sum() for name in found[0]}
    torch.stack(list(terms.values())).sum().backward()
    gradients = {f"gradient.{place}": p.grad for place, p in enumerate(task.learned()) if p.grad is not None}
    found = {name: value.detach().contiguous() for name, value in (terms | gradients).items()}
    dist.sum_(list(found.values()))
    return found


if __name__ == "__main__":
    rank, of, meeting, weights, out, size, parts = sys.argv[1:]
    torch.set_num_threads(1)
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(of), timeout=timedelta(seconds=120)
    )
    batch = share_of(Path(weights), int(rank), int(of), int(size))
    save_file(outcome(task_of(Path(weights)), batch, int(parts)), out)
    dist.leave()
