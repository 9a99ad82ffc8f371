"""Attention transfer: Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops
from dsd_core.distill.loss import FeatureLoss, Seen

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["at"]


class AttentionTransfer(FeatureLoss):
    """AT: squared distance of normalised energy maps, layer by layer."""

    loss: Literal["at"] = "at"
    on: Literal["feature", "taps"] = "taps"
    reduction: Literal["sum", "mean"] = "sum"

    def compute(self, seen: Seen) -> Tensor:
        return self.mean_over_pairs(seen, partial(at, reduction=self.reduction, valid=seen.valid_NHW))


def at(
    student: Tensor, teacher: Tensor, *, reduction: Literal["sum", "mean"] = "sum", valid: Tensor | None = None
) -> Tensor:
    """Mean over images of `||n(A_S) - n(A_T)||^2`, A the sum over channels of squared features, n to unit L2 norm.

    Features are NCHW; channels may differ, and both energy maps are resized to the coarser of the two grids before they
    are normalised. `reduction` is over positions: `sum` lies in [0, 2], `mean` divides by their number, as the public
    implementations do. Positions outside `valid` (NHW bool, any size) have no energy.
    """
    grid = ops.coarsest([student, teacher])
    energy_S, energy_T = (ops.resize(ops.energy(feature), grid) for feature in (student, teacher.detach()))
    counts = ops.valid_on(valid, energy_S).unsqueeze(1)
    unit_S, unit_T = (ops.normalize(energy.where(counts, 0).flatten(1)) for energy in (energy_S, energy_T))
    loss = (unit_S - unit_T).square().sum(dim=1).mean()
    return loss / (grid[0] * grid[1]) if reduction == "mean" else loss
