"""Pixel-wise distillation of class probabilities: Hinton, Vinyals, Dean, arXiv 1503.02531."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops
from dsd_core.distill.loss import LogitLoss, Seen
from dsd_core.parts import Temperature

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["kd"]


class LogitDistillation(LogitLoss):
    """Pixel-wise KL divergence of softened class probabilities, times temperature squared, mean over pixels."""

    loss: Literal["kd"] = "kd"
    temperature: Temperature = 1.0

    def compute(self, seen: Seen) -> Tensor:
        student, teacher, valid = self.logits(seen)
        return kd(student, teacher, temperature=self.temperature, valid=valid)

    def counted(self, seen: Seen) -> Tensor:
        return self.student_logits(seen)[1].sum()


def kd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """`T^2 KL(softmax(z_T / T) || softmax(z_S / T))` over classes, mean over the positions where `valid` (NHW bool).

    Logits are NKHW of the same N and K; the teacher's are resized to the student's grid. No valid position gives zero.
    """
    ops.refuse_other_channels(student_logits, teacher_logits, "KD")
    student, teacher = ops.on_one_grid(student_logits, teacher_logits)
    return temperature**2 * ops.divergence(student, teacher, temperature, ops.valid_on(valid, student))
