"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from dsd_core.data.loader import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device.

    To a GPU each is copied from pinned memory on a stream of its own as soon as it is asked for, while the step before
    it is still being computed, and only the next step waits for it. Elsewhere they are handed through.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            there = batch.to(device)
        training = torch.cuda.current_stream(device)
        training.wait_stream(copying)
        there.map(partial(_used_on, training))
        yield there


def _used_on(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)  # or its memory would be given out again before the step is done with it
    return tensor
