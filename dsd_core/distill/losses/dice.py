"""Soft Dice: Milletari, Navab, Ahmadi, 3DV 2016, arXiv 1606.04797."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dsd_core.distill.lazy import ops
from dsd_core.distill.loss import LossSpec, Seen

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dice"]


class Dice(LossSpec):
    """One minus the soft Dice coefficient, mean over the classes that are in the batch's labels."""

    loss: Literal["dice"] = "dice"
    smooth: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Added to numerator and denominator; larger values soften the term for small classes."""

    needs_teacher: ClassVar[bool] = False

    def compute(self, seen: Seen) -> Tensor:
        return dice(seen.student.logits, seen.labels_NHW, smooth=self.smooth, valid=seen.valid_NHW)


def dice(logits: Tensor, labels: Tensor, *, smooth: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Mean over the classes in `labels` of `1 - (2 sum p y + s) / (sum p + sum y + s)`, sums over the batch's pixels.

    Logits NKHW and labels NHW are of one size; labels outside 0..K-1 (255) and pixels outside `valid` do not count. No
    class at all gives zero.
    """
    classes = logits.shape[1]
    counts = ops.valid_on(valid, logits) & (labels >= 0) & (labels < classes)
    p_NKP = ops.widen(logits).softmax(dim=1).flatten(2).where(counts.flatten(1).unsqueeze(1), 0)
    hot_NKP = ops.one_hot(labels, classes, counts, p_NKP.dtype)
    both, mine, theirs = ((x).sum(dim=(0, 2)) for x in (p_NKP * hot_NKP, p_NKP, hot_NKP))
    # With s = 0 a class that is absent and never predicted would be 0 / 0.
    coefficient = (2 * both + smooth) / (mine + theirs + smooth).clamp_min(1e-6)
    return ops.masked_mean(1 - coefficient, theirs > 0)
