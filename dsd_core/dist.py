"""Several processes that train one student: `python -m torch.distributed.run --standalone --nproc-per-node N -m
dsd_core run …`.

Each process takes its share of every batch and computes its part of every term, and all add up their gradients: N
processes take the step that one would with the whole batch. The first process alone writes. Alone, a process pays
nothing for any of this. On CUDA each process has a GPU, and tensors there go by NCCL; all else goes by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from torch import Tensor

from dsd_core.errors import PeerLostError
from dsd_core.parent_death import die_with

PATIENCE = timedelta(days=1)
"""What a process waits for the others: the first may be drawing, and who stalls is found by the pulse."""


def join() -> None:
    """Meet the other processes that torchrun has started, and end with torchrun; alone, do nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    die_with(os.getppid())
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes; all are of one type, on one device, and in one order."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _together(lambda: torch_dist.all_reduce(flat))
    for tensor, whole in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(whole.view(tensor.shape))


def total(counts: Tensor) -> Tensor:
    """The sum of each count over the processes."""
    summed = counts.clone()
    sum_([summed])
    return summed


def largest(*values: float) -> list[float]:
    """The largest of each value over the processes."""
    if world() == 1:
        return list(values)
    all_values = torch.tensor(values, dtype=torch.float64)
    _together(lambda: torch_dist.all_reduce(all_values, torch_dist.ReduceOp.MAX))
    found: list[float] = all_values.tolist()
    return found


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of every process, by rank; all have the same shape."""
    if world() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(world())]
    _together(lambda: torch_dist.all_gather(found, tensor))
    return found


def wait() -> None:
    """Until all processes are here."""
    largest(0)


def _together(work: Callable[[], object]) -> None:
    try:
        work()
    except RuntimeError as error:  # gloo and NCCL have no finer class for a peer that closed its connection
        raise PeerLostError(f"Another process of this run has ended: {str(error).splitlines()[0]}") from error
