"""Random predictions that are counted, and the program of one process of a distributed evaluation.

`python counting_rank.py RANK OF MEETING_FILE SEED...` counts the images of its seeds, sums over all processes and
prints the counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_core.evaluate import Confusion


def random_pair(seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Class ids of two images as they are predicted and labelled, a fifth of the labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (2, 9, 7), generator=generator)
    labels = torch.randint(0, classes + 1, (2, 9, 7), generator=generator)
    return predicted, labels.where(labels < classes, 255)


def counted(seeds: Iterable[int]) -> Confusion:
    confusion = Confusion(4, boundary=True)
    for seed in seeds:
        confusion.add(*random_pair(seed))
    return confusion


def as_numbers(confusion: Confusion) -> list:
    return [confusion.counts.tolist(), confusion.boundary_counts.tolist(), confusion.images]


if __name__ == "__main__":
    rank, of, meeting, *seeds = sys.argv[1:]
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(of), timeout=timedelta(seconds=120)
    )
    print(json.dumps(as_numbers(counted(map(int, seeds)).reduced())))
    dist.destroy_process_group()
