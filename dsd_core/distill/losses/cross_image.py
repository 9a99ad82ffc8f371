"""Cross-image relations: Yang, Zhou, An, Jiang, Xu, Zhang, CVPR 2022, arXiv 2204.06986. The mini-batch form, without
the paper's memory queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dsd_core.distill.lazy import F, ops, torch
from dsd_core.distill.loss import FeatureLoss, Seen
from dsd_core.distill.signals import grid_at
from dsd_core.parts import Temperature

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cirkd"]

ROWS = 256
"""Positions whose similarities to all others are in memory at once."""


class CrossImage(FeatureLoss):
    """CIRKD, mini-batch: KL divergence of each position's softmaxed similarities to all positions of each image."""

    loss: Literal["cirkd"] = "cirkd"
    temperature: Temperature = 0.1
    stride: Annotated[int, Field(ge=1, le=64)] = 8
    """Features are compared on the grid of the crop divided by this; the cost grows with the square of its
    positions."""

    def compute(self, seen: Seen) -> Tensor:
        def term(student: Tensor, teacher: Tensor) -> Tensor:
            on_grid = ops.resize(ops.widen(student), grid_at(seen.size, self.stride))
            return cirkd(on_grid, teacher, temperature=self.temperature, valid=seen.valid_NHW)

        return self.mean_over_pairs(seen, term)


def cirkd(student: Tensor, teacher: Tensor, *, temperature: float = 0.1, valid: Tensor | None = None) -> Tensor:
    """`(1 / N^2) sum_ab mean_i KL(softmax_j(T_a T_b' / t)_i || softmax_j(S_a S_b' / t)_i)`, a and b any two images.

    S and T are the unit features of the positions i of image a and j of image b. Features are NCHW; channels may
    differ, and the teacher's are resized to the student's grid. Positions outside `valid` (NHW bool, any size) are
    neither rows nor columns. Similarities of 256 positions at a time are formed, and formed again in the backward pass:
    memory is linear in the positions of the batch.
    """
    student, teacher = ops.on_one_grid(student, teacher)
    counts = ops.valid_on(valid, student).flatten(1)
    units_S, units_T = (ops.normalize(x.flatten(2).transpose(1, 2)).flatten(0, 1) for x in (student, teacher))
    weight = (counts.to(units_S.dtype) / counts.sum(dim=1, keepdim=True).clamp_min(1)).flatten()
    total = units_S.new_zeros(())
    for rows in torch.arange(len(units_S), device=units_S.device).split(ROWS):
        total = total + ops.recomputed(
            _rows_divergence, units_S[rows], units_T[rows], units_S, units_T, counts, weight[rows], temperature
        )
    return total / counts.shape[0] ** 2


def _rows_divergence(
    rows_S: Tensor,
    rows_T: Tensor,
    units_S: Tensor,
    units_T: Tensor,
    counts_NP: Tensor,
    weight: Tensor,
    temperature: float,
) -> Tensor:
    """The weighted sum over rows, and over images, of the divergence of their similarities to the image's positions."""
    log_p_S, log_p_T = (
        ops.log_softmax_over((rows @ units.T / temperature).unflatten(1, counts_NP.shape), counts_NP)
        for rows, units in ((rows_S, units_S), (rows_T, units_T))
    )
    divergence = F.kl_div(log_p_S, log_p_T, reduction="none", log_target=True).where(counts_NP, 0)
    return (divergence.sum(dim=(1, 2)) * weight).sum()
