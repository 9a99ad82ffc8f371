"""Pair-wise structured distillation: Liu, Chen, Liu, Qin, Luo, Wang, CVPR 2019, arXiv 1903.04197."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dsd_core.distill.lazy import F, ops, torch
from dsd_core.distill.loss import FeatureLoss, Seen
from dsd_core.parts import alternatives

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["skd_pairwise"]

Pool = Annotated[
    Annotated[int, Field(ge=2, le=64)] | Literal["half"] | None,
    alternatives("give a whole number from 2 to 64, `half`, or null."),
]


class PairWise(FeatureLoss):
    """SKD pair-wise: squared difference of the cosine similarities of all pairs of positions."""

    loss: Literal["skd_pairwise"] = "skd_pairwise"
    pool: Pool = None
    """Positions are first max-pooled in cells of this many squared; `half`: cells of half the height and width, as
    released (2x2 or 3x3 nodes in all). None compares every position (dense)."""

    def compute(self, seen: Seen) -> Tensor:
        return self.mean_over_pairs(seen, partial(skd_pairwise, pool=self.pool, valid=seen.valid_NHW))


def skd_pairwise(
    student: Tensor, teacher: Tensor, *, pool: int | Literal["half"] | None = None, valid: Tensor | None = None
) -> Tensor:
    """Mean over images of `(1 / P^2) sum_ij (a_ij^S - a_ij^T)^2`, a_ij the cosine of the features of positions i and j.

    Features are NCHW; channels may differ, and the teacher's are resized to the student's grid, then max-pooled like
    the student's. The P x P affinities are never formed where the channels are fewer than the positions: `||SS' -
    TT'||^2 = ||S'S||^2 + ||T'T||^2 - 2 ||S'T||^2`, with C x C products. Positions outside `valid` (NHW bool, any size)
    are no nodes.
    """
    student, teacher = ops.on_one_grid(student, teacher)
    counts = ops.valid_on(valid, student)
    if pool is not None:
        cell = tuple(max(side // 2, 1) for side in ops.grid_of(student)) if pool == "half" else (pool, pool)
        student, teacher, counts = _pooled(student, teacher, counts, cell)
    flags = counts.flatten(1)
    nodes_S, nodes_T = (
        ops.normalize(feature.flatten(2).transpose(1, 2)) * flags.unsqueeze(2) for feature in (student, teacher)
    )
    distance = _gram_distance(nodes_S, nodes_T) if _few_channels(nodes_S, nodes_T) else _distance(nodes_S, nodes_T)
    return (distance / flags.sum(dim=1).clamp_min(1).square()).mean()


def _pooled(student: Tensor, teacher: Tensor, counts: Tensor, cell: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Max-pooled in cells, the last smaller; a cell is a node where one of its positions is."""
    lowest = torch.finfo(student.dtype).min
    inside = counts.unsqueeze(1)
    node = F.max_pool2d(inside.to(student.dtype), cell, stride=cell, ceil_mode=True) > 0
    student, teacher = (
        F.max_pool2d(feature.masked_fill(~inside, lowest), cell, stride=cell, ceil_mode=True).where(node, 0)
        for feature in (student, teacher)
    )
    return student, teacher, node.squeeze(1)


def _few_channels(nodes_S: Tensor, nodes_T: Tensor) -> bool:
    return nodes_S.shape[2] + nodes_T.shape[2] < 2 * nodes_S.shape[1]


def _gram_distance(nodes_S: Tensor, nodes_T: Tensor) -> Tensor:
    """`||SS' - TT'||^2` of each image, N x P x C each, by products over positions."""
    own = (nodes_S.transpose(1, 2) @ nodes_S).square().sum(dim=(1, 2))
    with torch.no_grad():
        fixed = (nodes_T.transpose(1, 2) @ nodes_T).square().sum(dim=(1, 2))
    shared = (nodes_S.transpose(1, 2) @ nodes_T).square().sum(dim=(1, 2))
    return (own + fixed - 2 * shared).clamp_min(0)


def _distance(nodes_S: Tensor, nodes_T: Tensor) -> Tensor:
    affinity_S, affinity_T = (nodes @ nodes.transpose(1, 2) for nodes in (nodes_S, nodes_T))
    return (affinity_S - affinity_T).square().sum(dim=(1, 2))
