"""What several losses do to tensors: bring two to one grid, normalise, mask.

Letters, here and in the losses: N images, C channels, K classes, H x W positions (P of them), L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsd_core.distill.critic import Critic

EPS = 1e-12
Grid = tuple[int, int]


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision inputs are computed in float32, float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def normalize(v: Tensor) -> Tensor:
    """`v / max(||v||_2, eps)` over the last dimension."""
    return F.normalize(v, dim=-1, eps=EPS)


def energy(feature_NCHW: Tensor) -> Tensor:
    """Attention of each position: the sum over channels of squares, NCHW to N1HW, in float32 (or 64)."""
    found: Tensor = _Energy.apply(feature_NCHW)
    return found


class _Energy(torch.autograd.Function):
    """The sum of squares without the squares in memory: a tenth of the time for the 2048 channels of a teacher."""

    CHANNELS = 64
    """Channels squared at a time where they are not neighbours in memory: few enough to stay in a core's cache."""

    @staticmethod
    def forward(ctx: Any, feature_NCHW: Tensor) -> Tensor:
        ctx.save_for_backward(feature_NCHW)
        if feature_NCHW.stride(1) == 1:
            wide = torch.float64 if feature_NCHW.dtype == torch.float64 else torch.float32
            return torch.linalg.vector_norm(feature_NCHW, dim=1, keepdim=True, dtype=wide).square()
        parts = feature_NCHW.split(_Energy.CHANNELS, dim=1)
        return torch.stack([widen(part).square().sum(dim=1, keepdim=True) for part in parts]).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, gradient_N1HW: Tensor) -> Tensor:
        (feature_NCHW,) = ctx.saved_tensors
        return (feature_NCHW * (2 * gradient_N1HW)).to(feature_NCHW.dtype)


def gram(q: Tensor) -> Tensor:
    """Inner products of the rows of N x K x P: N x K x K."""
    found: Tensor = _Gram.apply(q)
    return found


class _Gram(torch.autograd.Function):
    """`q @ q.T` whose backward pass is one product, not two and a sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return q @ q.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        return (gradient + gradient.transpose(1, 2)) @ q


def grid_of(x: Tensor) -> Grid:
    """Height and width."""
    return x.shape[-2], x.shape[-1]


def coarsest(features: Sequence[Tensor]) -> Grid:
    """The grid with the fewest positions."""
    return grid_of(min(features, key=lambda feature: feature.shape[-2] * feature.shape[-1]))


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 (or 64), without gradient to the teacher, the teacher resized to the student's grid."""
    return widen(student), resize(widen(teacher.detach()), grid_of(student))


def refuse_other_channels(student: Tensor, teacher: Tensor, loss: str) -> None:
    """Raise ValueError unless both have the same images and channels."""
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{loss} needs the same images and channels of both networks; got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}. Project the student's channels to the teacher's with a 1x1 convolution."
        )


def valid_on(valid_NHW: Tensor | None, like: Tensor) -> Tensor:
    """bool N x H x W on the grid of `like`: a position counts where at least half of its pixels do; None: all do."""
    grid = grid_of(like)
    if valid_NHW is None:
        return torch.ones(like.shape[0], *grid, dtype=torch.bool, device=like.device)
    if grid_of(valid_NHW) == grid:
        return valid_NHW
    (rows, more_rows), (columns, more_columns) = map(divmod, grid_of(valid_NHW), grid)
    if more_rows or more_columns or not 0 < rows * columns < 256:
        return resize(valid_NHW.unsqueeze(1).float(), grid).squeeze(1) >= 0.5
    # Cells of whole pixels are counted in bytes, in a fifth of the time.
    pixels = valid_NHW.view(torch.uint8)
    found = sum(pixels[:, row::rows] for row in range(rows))
    assert isinstance(found, Tensor)
    found = sum(found[:, :, column::columns] for column in range(columns))
    assert isinstance(found, Tensor)
    return found >= (rows * columns + 1) // 2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is true; zero where it is true nowhere."""
    return values.where(mask, 0).sum() / mask.sum().clamp_min(1)


def log_softmax_over(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over the last dimension among the positions of `mask`; zero elsewhere."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).log_softmax(dim=-1).where(mask, 0)


def one_hot(labels_NHW: Tensor, classes: int, valid_NHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels as N x K x P of zeros and ones; positions that do not count are zero in every class."""
    flat, counts = labels_NHW.flatten(1), valid_NHW.flatten(1)
    hot = torch.zeros(flat.shape[0], classes, flat.shape[1], dtype=dtype, device=labels_NHW.device)
    return hot.scatter_(1, flat.where(counts, 0).unsqueeze(1), counts.unsqueeze(1).to(dtype))


def labels_on(labels_NHW: Tensor, grid: Grid) -> Tensor:
    """Labels at the centres of the grid's cells."""
    rows, columns = (
        ((torch.arange(to, device=labels_NHW.device) + 0.5) * side / to).long()
        for side, to in zip(grid_of(labels_NHW), grid, strict=True)
    )
    return labels_NHW[:, rows][:, :, columns]


def resize(maps: Tensor, grid: Grid) -> Tensor:
    """Resize NCHW to the grid: area average where an axis shrinks, bilinear (align_corners=False) where it grows.

    Two matrix products: the same numbers as torch's own kernels, with a backward that is deterministic on every device.
    """
    height, width = maps.shape[-2:]
    if height != grid[0]:
        maps = _axis_matrix(height, grid[0]).to(maps) @ maps
    if width != grid[1]:
        maps = maps @ _axis_matrix(width, grid[1]).to(maps).T
    return maps


@lru_cache(maxsize=64)
def _axis_matrix(size_in: int, size_out: int) -> Tensor:
    """Weights size_out x size_in, float64, rows summing to 1."""
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for row in range(size_out):
        if size_out < size_in:
            start, end = row * size_in // size_out, -(-(row + 1) * size_in // size_out)
            matrix[row, start:end] = 1 / (end - start)
        else:
            at = max((row + 0.5) * size_in / size_out - 0.5, 0.0)
            low = min(int(at), size_in - 1)
            high = min(low + 1, size_in - 1)
            matrix[row, low] += 1 - (at - low)
            matrix[row, high] += at - low
    return matrix


def projections(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """A 1x1 convolution a pair of features, from the student's channels to the teacher's."""
    pairs = zip(student_channels, teacher_channels, strict=True)
    return nn.ModuleList(nn.Conv2d(student, teacher, 1, bias=False) for student, teacher in pairs)


def critic(classes: int) -> nn.Module:
    """The critic of holistic distillation for this many classes."""
    return Critic(classes)


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """The function's value; what it needs for the backward pass is computed again there instead of kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
