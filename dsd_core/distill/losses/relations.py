"""Distillation from a stronger teacher: Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops
from dsd_core.distill.loss import LogitLoss, Seen
from dsd_core.parts import Temperature, Weight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dist"]


class Relations(LogitLoss):
    """DIST: one minus the Pearson correlation of class probabilities, per pixel over classes and per class over
    pixels."""

    loss: Literal["dist"] = "dist"
    beta: Weight = 1.0
    """Weight of the correlations over classes."""
    gamma: Weight = 1.0
    """Weight of the correlations over the batch's pixels."""
    temperature: Temperature = 1.0

    def compute(self, seen: Seen) -> Tensor:
        student, teacher, valid = self.logits(seen)
        return dist(student, teacher, beta=self.beta, gamma=self.gamma, temperature=self.temperature, valid=valid)

    def counted(self, seen: Seen) -> Tensor:
        return self.student_logits(seen)[1].sum()


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`T^2 (beta (1 - mean_i r_i) + gamma (1 - mean_k r_k))`, r the Pearson correlation of `softmax(z / T)`.

    r_i runs over the classes of a pixel, r_k over all pixels of the batch for a class; both only over the positions
    where `valid` (NHW bool, any size), and no such position gives zero. Logits are NKHW of the same N and K; the
    teacher's are resized to the student's grid.
    """
    ops.refuse_other_channels(student_logits, teacher_logits, "DIST")
    student, teacher = ops.on_one_grid(student_logits, teacher_logits)
    counts = ops.valid_on(valid, student).flatten()
    p_S, p_T = (
        (logits / temperature).softmax(dim=1).transpose(0, 1).flatten(1).where(counts, 0)
        for logits in (student, teacher)
    )
    some = counts.any().to(p_S.dtype)
    inter = ops.masked_mean(1 - _correlation(p_S.T, p_T.T), counts)
    share = counts.sum().clamp_min(1)
    centred_S, centred_T = ((p - p.sum(dim=1, keepdim=True) / share).where(counts, 0) for p in (p_S, p_T))
    intra = (1 - _cosine(centred_S, centred_T)).mean() * some
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the last dimension."""
    return _cosine(a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # A row without variation correlates with nothing; the epsilon is DIST's own.
    return (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)
