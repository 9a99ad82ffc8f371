"""Attention transfer: Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops, torch
from dsd_core.distill.loss import FeatureLoss, Seen
from dsd_core.distill.signals import Energy, Signal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["at"]


class AttentionTransfer(FeatureLoss):
    """AT: squared distance of normalised energy maps, layer by layer."""

    loss: Literal["at"] = "at"
    on: Literal["feature", "taps"] = "taps"
    reduction: Literal["sum", "mean"] = "sum"

    @property
    def energy(self) -> Energy:
        return Energy(self.on)

    def signals(self) -> tuple[Signal, ...] | None:
        return (self.energy,)

    def compute(self, seen: Seen) -> Tensor:
        pairs = zip(seen.student.energies(self.on), seen.told(self.energy), strict=True)
        distance = partial(attention_distance, reduction=self.reduction, valid=seen.valid_NHW)
        return torch.stack([distance(student, teacher) for student, teacher in pairs]).mean()


def at(
    student: Tensor, teacher: Tensor, *, reduction: Literal["sum", "mean"] = "sum", valid: Tensor | None = None
) -> Tensor:
    """Mean over images of `||n(A_S) - n(A_T)||^2`, A the sum over channels of squared features, n to unit L2 norm.

    Features are NCHW; channels may differ, and both energy maps are resized to the coarser of the two grids before they
    are normalised. `reduction` is over positions: `sum` lies in [0, 2], `mean` divides by their number, as the public
    implementations do. Positions outside `valid` (NHW bool, any size) have no energy.
    """
    return attention_distance(ops.energy(student), ops.energy(teacher.detach()), reduction=reduction, valid=valid)


def attention_distance(
    energy_S: Tensor, energy_T: Tensor, *, reduction: Literal["sum", "mean"] = "sum", valid: Tensor | None = None
) -> Tensor:
    """AT from energy maps N1HW, of which a positive factor an image makes no difference."""
    grid = ops.coarsest([energy_S, energy_T])
    energy_S, energy_T = (ops.resize(energy, grid) for energy in (energy_S, energy_T))
    counts = ops.valid_on(valid, energy_S).unsqueeze(1)
    unit_S, unit_T = (ops.normalize(energy.where(counts, 0).flatten(1)) for energy in (energy_S, energy_T))
    loss = (unit_S - unit_T).square().sum(dim=1).mean()
    return loss / (grid[0] * grid[1]) if reduction == "mean" else loss
