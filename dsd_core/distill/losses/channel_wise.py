"""Channel-wise distillation: Shu, Liu, Gao, Yan, Shen, ICCV 2021, arXiv 2011.13256."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import F, ops
from dsd_core.distill.loss import Channels, FeatureLoss, Layers, LogitLoss, Seen
from dsd_core.distill.signals import Signal
from dsd_core.parts import Temperature

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["cwd"]


class ChannelWise(LogitLoss, FeatureLoss):
    """CWD: KL divergence of each channel's softmax over positions."""

    loss: Literal["cwd"] = "cwd"
    on: Literal["logits", "feature", "taps"] = "logits"  # type: ignore[assignment]
    """`logits`: class by class. `feature`, `taps`: channel by channel, the student's through a learned 1x1
    convolution; `stride` is for logits alone."""
    temperature: Temperature = 4.0

    def student_layers(self) -> tuple[Layers, ...]:
        return LogitLoss.student_layers(self) if self.on == "logits" else (self.on,)

    def signals(self) -> tuple[Signal, ...] | None:
        return LogitLoss.signals(self) if self.on == "logits" else None

    def projection(self, channels: Channels) -> nn.Module | None:
        return None if self.on == "logits" else ops.projections(channels.student[self.on], channels.teacher[self.on])

    def compute(self, seen: Seen) -> Tensor:
        if self.on != "logits":
            return self.mean_over_pairs(seen, partial(cwd, temperature=self.temperature, valid=seen.valid_NHW))
        student, teacher, valid = self.logits(seen)
        return cwd(student, teacher, temperature=self.temperature, valid=valid)


def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, valid: Tensor | None = None) -> Tensor:
    """`(T^2 / C) sum_c KL(softmax_HW(F_T,c / T) || softmax_HW(F_S,c / T))`, mean over images.

    Features or logits are NCHW of the same N and C; the teacher's are resized to the student's grid. The softmax runs
    over the positions where `valid` (NHW bool, any size); an image without any contributes zero. Raises ValueError for
    other channels.
    """
    ops.refuse_other_channels(student, teacher, "CWD")
    student, teacher = ops.on_one_grid(student, teacher)
    counts = ops.valid_on(valid, student).flatten(1).unsqueeze(1)
    log_p_S, log_p_T = (ops.log_softmax_over(x.flatten(2) / temperature, counts) for x in (student, teacher))
    divergence = F.kl_div(log_p_S, log_p_T, reduction="none", log_target=True).where(counts, 0)
    return temperature**2 * divergence.sum(dim=2).mean()
