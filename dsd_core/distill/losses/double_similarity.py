"""Double Similarity Distillation: Feng, Sun, Diao, Li, Gao, IEEE TIP 30 (2021), arXiv 2107.08591.

The paper has no released code; docs/methods.md says what is reconstructed and what is this project's decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dsd_core.distill.lazy import F, ops, torch
from dsd_core.distill.loss import Layers, LogitLoss, LossSpec, Seen
from dsd_core.distill.signals import Correlation, Energy, Presence, Signal, grid_at
from dsd_core.parts import Temperature

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["category_correlation", "category_similarity", "pixel_similarity", "residual_attention"]

Pairs = Literal["adjacent", "all"]
Softmax = Literal["category", "spatial"]


class PixelSimilarity(LossSpec):
    """PSD: squared distance of residual attention maps of adjacent layers."""

    loss: Literal["psd"] = "psd"
    pairs: Pairs = "adjacent"
    reduction: Literal["sum", "mean"] = "sum"
    stride: Annotated[int, Field(ge=1, le=64)] = 8
    """All maps are compared on the grid of the crop divided by this."""
    layers: Literal["taps", "head"] = "taps"
    """`taps`: the networks' taps. `head`: auxiliary logits (where both networks have them), head feature and logits."""

    def student_layers(self) -> tuple[Layers, ...]:
        return (self.layers,)

    @property
    def energy(self) -> Energy:
        return Energy(self.layers, self.stride)

    def signals(self) -> tuple[Signal, ...] | None:
        return (self.energy,)

    def compute(self, seen: Seen) -> Tensor:
        grid = grid_at(seen.size, self.stride)
        maps_S = [ops.resize(energy, grid) for energy in seen.student.energies(self.layers)]
        return map_similarity(
            maps_S, seen.told(self.energy), pairs=self.pairs, reduction=self.reduction, valid=seen.valid_on(maps_S[0])
        )


class CategorySimilarity(LogitLoss):
    """CSD: mean squared difference of class correlation matrices."""

    loss: Literal["csd"] = "csd"
    tau: Temperature = 1.0
    softmax: Softmax = "category"
    normalize: bool = True
    pool: Annotated[int, Field(ge=2, le=64)] | None = None
    """Average cells of this many logits squared first; the last cell may be smaller."""
    present_only: bool = False
    """Leave out classes absent from both the teacher's prediction and the labels of the crop."""

    @property
    def correlation(self) -> Correlation:
        return Correlation(self.kept_logits, self.tau, self.softmax, self.normalize, self.pool)

    def signals(self) -> tuple[Signal, ...] | None:
        return (self.correlation, Presence()) if self.present_only else (self.correlation,)

    def compute(self, seen: Seen) -> Tensor:
        student, valid = self.student_logits(seen)
        matrix_S = category_correlation(
            student, tau=self.tau, softmax=self.softmax, normalize=self.normalize, pool=self.pool, valid=valid
        )
        (matrix_T,) = seen.told(self.correlation)
        present = None
        if self.present_only:
            (found,) = seen.told(Presence())
            present = found.bool() | labelled_classes(seen.labels_NHW, found.shape[1])
        return matrix_similarity(matrix_S, matrix_T, present)


def pixel_similarity(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    pairs: Pairs = "adjacent",
    reduction: Literal["sum", "mean"] = "sum",
    grid: tuple[int, int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """PSD: mean over images and pairs of `||r_S - r_T||^2`, r the residual of the normalised energy maps of two layers.

    `student` and `teacher` are L >= 2 feature maps NCHW each, shallow to deep; channels and sizes may differ between
    the two. All energy maps are resized to `grid` (height, width), by default the coarsest map given. `reduction` is
    over positions: `sum` lies in [0, 4] whatever the resolution, `mean` divides by the number of positions. Positions
    outside `valid` (NHW bool, any size) have no energy. Raises ValueError for lists that do not match.
    """
    grid = grid or ops.coarsest([*student, *teacher])
    with torch.no_grad():
        maps_T = energy_maps(teacher, grid)
    return map_similarity(energy_maps(student, grid), maps_T, pairs=pairs, reduction=reduction, valid=valid)


def map_similarity(
    maps_S: Sequence[Tensor],
    maps_T: Sequence[Tensor],
    *,
    pairs: Pairs = "adjacent",
    reduction: Literal["sum", "mean"] = "sum",
    valid: Tensor | None = None,
) -> Tensor:
    """PSD from energy maps N1HW of one grid, of which a positive factor an image and layer makes no difference."""
    if len(maps_S) != len(maps_T) or len(maps_S) < 2:
        raise ValueError(f"PSD needs the same number of maps, at least two; got {len(maps_S)} and {len(maps_T)}.")
    with torch.no_grad():
        residual_T = residual_attention(maps_T, pairs, valid)
    residual_S = residual_attention(maps_S, pairs, valid)
    counted = residual_S.numel() if reduction == "mean" else math.prod(residual_S.shape[:2])
    return F.mse_loss(residual_S, residual_T, reduction="sum") / counted


def energy_maps(features: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
    """Energy maps N1HW of features NCHW, resized to the grid (height, width)."""
    return [ops.resize(ops.energy(feature), grid) for feature in features]


def residual_attention(maps: Sequence[Tensor], pairs: Pairs = "adjacent", valid: Tensor | None = None) -> Tensor:
    """Residual attention maps `n(a_m - a_l)` of each pair of layers l < m, from energy maps N1HW of one grid: N x pairs
    x (H*W), each with unit norm."""
    energies_NLHW = torch.cat(list(maps), dim=1)
    if valid is not None:
        energies_NLHW = energies_NLHW.where(ops.valid_on(valid, energies_NLHW).unsqueeze(1), 0)
    units = ops.normalize(energies_NLHW.flatten(2))
    if pairs == "adjacent":
        return ops.normalize(units[:, 1:] - units[:, :-1])
    shallow, deep = zip(*combinations(range(len(maps)), 2), strict=True)
    return ops.normalize(units[:, deep] - units[:, shallow])


def category_similarity(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    tau: float = 1.0,
    softmax: Softmax = "category",
    normalize: bool = True,
    pool: int | None = None,
    present: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """CSD: mean over images and pairs of classes of `(M_S - M_T)^2`, M the K x K correlation of class maps.

    Logits are NKHW with the same N and K; sizes may differ. `softmax` runs over classes or over positions,
    `normalize` gives each class map unit norm, `pool` first averages p x p cells (the last may be smaller). `present`
    is a bool N x K of the classes that count in each image; images with none contribute zero. Positions outside
    `valid` (NHW bool, any size) do not enter M. Raises ValueError for logits that do not match.
    """
    ops.refuse_other_channels(student_logits, teacher_logits, "CSD")
    correlate = partial(category_correlation, tau=tau, softmax=softmax, normalize=normalize, pool=pool, valid=valid)
    matrix_S = correlate(student_logits)
    with torch.no_grad():
        matrix_T = correlate(teacher_logits)
    return matrix_similarity(matrix_S, matrix_T, present)


def matrix_similarity(matrix_S: Tensor, matrix_T: Tensor, present: Tensor | None = None) -> Tensor:
    """CSD from correlation matrices N x K x K."""
    if present is None:
        return F.mse_loss(matrix_S, matrix_T)
    squared = (matrix_S - matrix_T).square()
    both = (present.unsqueeze(2) & present.unsqueeze(1)).to(squared.dtype)
    return ((squared * both).sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp_min(1)).mean()


def category_correlation(
    logits: Tensor,
    *,
    tau: float = 1.0,
    softmax: Softmax = "category",
    normalize: bool = True,
    pool: int | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Class correlation matrices N x K x K of logits NKHW; with `normalize` the diagonal is 1 and entries lie in [0,
    1]."""
    logits = ops.widen(logits)
    if pool is not None:
        logits = F.avg_pool2d(logits, pool, stride=pool, ceil_mode=True)
    if valid is not None:
        valid = ops.valid_on(valid, logits)
    if softmax == "category":
        return ops.class_correlation(logits, tau, valid, normalize=normalize)
    scores = logits.flatten(2) / tau
    if valid is None:
        return ops.correlation(scores.softmax(dim=2), normalize=normalize)
    counts = valid.flatten(1).unsqueeze(1)
    return ops.correlation(ops.log_softmax_over(scores, counts).exp() * counts, normalize=normalize)


def labelled_classes(labels_NHW: Tensor, classes: int) -> Tensor:
    """bool N x K: the class is among the labels of the image."""
    found = torch.zeros(len(labels_NHW), classes + 1, dtype=torch.bool, device=labels_NHW.device)
    found.scatter_(1, labels_NHW.where(labels_NHW < classes, classes).flatten(1), True)
    return found[:, :classes]
