"""Random tensors for the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def maps(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
