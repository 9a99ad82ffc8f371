"""Hints: the student regresses the teacher's features. Romero et al., FitNets, ICLR 2015, arXiv 1412.6550."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops
from dsd_core.distill.loss import Channels, FeatureLoss, Seen

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["fitnet"]


class Hints(FeatureLoss):
    """FitNet: mean squared difference of features, the student's through a learned 1x1 convolution."""

    loss: Literal["fitnet"] = "fitnet"

    def projection(self, channels: Channels) -> nn.Module:
        return ops.projections(channels.student[self.on], channels.teacher[self.on])

    def compute(self, seen: Seen) -> Tensor:
        return self.mean_over_pairs(seen, partial(fitnet, valid=seen.valid_NHW))

    def counted(self, seen: Seen) -> Tensor:
        return ops.valid_on(seen.valid_NHW, seen.student.inside(self.on)[0]).sum()


def fitnet(student: Tensor, teacher: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Mean over images, channels and valid positions of `(F_S - F_T)^2`, features NCHW of the same N and C.

    The teacher's are resized to the student's grid. A student of other channels is projected first. No valid position
    gives zero. Raises ValueError for other channels.
    """
    ops.refuse_other_channels(student, teacher, "FitNet")
    student, teacher = ops.on_one_grid(student, teacher)
    return ops.masked_mean((student - teacher).square().mean(dim=1), ops.valid_on(valid, student))
