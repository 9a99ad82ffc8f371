"""Losses between a student and a teacher, as pure functions that return a scalar.

Double Similarity Distillation: Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image
Segmentation", IEEE TIP 30 (2021). The paper has no released code; what is reconstructed and what is this project's
decision is said in docs/methods.md.

Letters: N images, C channels, K classes, H x W positions, L layers. Half-precision inputs are computed in float32.
Nothing flows back into the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12


def pixel_similarity(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    pairs: Literal["adjacent", "all"] = "adjacent",
    reduction: Literal["sum", "mean"] = "sum",
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """PSD: mean over images and pairs of `||r_S - r_T||^2`, r the residual of the normalised energy maps of two layers.

    `student` and `teacher` are L >= 2 feature maps NCHW each, shallow to deep; channels and sizes may differ between
    the two. All energy maps are resized to `grid` (height, width), by default the coarsest map given. `reduction` is
    over positions: `sum` lies in [0, 4] whatever the resolution, `mean` divides by the number of positions. Raises
    ValueError for lists that do not match.
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(f"PSD needs the same number of maps, at least two; got {len(student)} and {len(teacher)}.")
    if grid is None:
        coarsest = min((*student, *teacher), key=lambda feature: feature.shape[-2] * feature.shape[-1])
        grid = (coarsest.shape[-2], coarsest.shape[-1])
    residual_S = residual_attention(student, grid, pairs)
    with torch.no_grad():
        residual_T = residual_attention(teacher, grid, pairs)
    squared = torch.stack([(s - t).square().sum(dim=1) for s, t in zip(residual_S, residual_T, strict=True)])
    loss = squared.mean()
    return loss / (grid[0] * grid[1]) if reduction == "mean" else loss


def residual_attention(
    features: Sequence[Tensor], grid: tuple[int, int], pairs: Literal["adjacent", "all"] = "adjacent"
) -> list[Tensor]:
    """Residual attention maps `n(a_m - a_l)` of each pair of layers l < m, each N x (H*W) with unit norm per image."""
    maps = [_normalize(resize(energy(feature), grid).flatten(1)) for feature in features]
    chosen = pairwise(maps) if pairs == "adjacent" else combinations(maps, 2)
    return [_normalize(deep - shallow) for shallow, deep in chosen]


def energy(feature: Tensor) -> Tensor:
    """Attention of each position: the sum over channels of squares, NCHW to N1HW."""
    return _widen(feature).square().sum(dim=1, keepdim=True)


def category_similarity(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    tau: float = 1.0,
    softmax: Literal["category", "spatial"] = "category",
    normalize: bool = True,
    pool: int | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """CSD: mean over images and pairs of classes of `(M_S - M_T)^2`, M the K x K correlation of class maps.

    Logits are NKHW with the same N and K; sizes may differ. `softmax` runs over classes or over positions,
    `normalize` gives each class map unit norm, `pool` first averages p x p cells (the last may be smaller). `present`
    is a bool N x K of the classes that count in each image; images with none contribute zero. Raises ValueError for
    logits that do not match.
    """
    if student_logits.shape[:2] != teacher_logits.shape[:2]:
        raise ValueError(
            "CSD needs logits of the same images and classes; got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}."
        )
    matrix_S = category_correlation(student_logits, tau=tau, softmax=softmax, normalize=normalize, pool=pool)
    with torch.no_grad():
        matrix_T = category_correlation(teacher_logits, tau=tau, softmax=softmax, normalize=normalize, pool=pool)
    squared = (matrix_S - matrix_T).square()
    if present is None:
        return squared.mean()
    both = (present.unsqueeze(2) & present.unsqueeze(1)).to(squared.dtype)
    return ((squared * both).sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp_min(1)).mean()


def category_correlation(
    logits: Tensor,
    *,
    tau: float = 1.0,
    softmax: Literal["category", "spatial"] = "category",
    normalize: bool = True,
    pool: int | None = None,
) -> Tensor:
    """Class correlation matrices N x K x K of logits NKHW; with `normalize` the diagonal is 1 and entries lie in [0,
    1]."""
    logits = _widen(logits)
    if pool is not None:
        logits = F.avg_pool2d(logits, pool, stride=pool, ceil_mode=True)
    scores = logits.flatten(2) / tau
    q = scores.softmax(dim=1 if softmax == "category" else 2)
    if normalize:
        q = _normalize(q)
    return q @ q.transpose(1, 2)


def kd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """Pixel-wise distillation: `T^2 KL(softmax(z_T / T) || softmax(z_S / T))`, mean over the positions where `valid`
    (NHW bool).

    Logits are NKHW of one shape. No valid position gives zero. Hinton, Vinyals, Dean, arXiv 1503.02531.
    """
    log_p_S = (_widen(student_logits) / temperature).log_softmax(dim=1)
    log_p_T = (_widen(teacher_logits).detach() / temperature).log_softmax(dim=1)
    per_pixel = F.kl_div(log_p_S, log_p_T, reduction="none", log_target=True).sum(dim=1)
    if valid is None:
        return temperature**2 * per_pixel.mean()
    return temperature**2 * (per_pixel * valid).sum() / valid.sum().clamp_min(1)


def resize(maps: Tensor, grid: tuple[int, int]) -> Tensor:
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


def _normalize(v: Tensor) -> Tensor:
    """`v / max(||v||_2, eps)` over the last dimension."""
    return F.normalize(v, dim=-1, eps=EPS)


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
