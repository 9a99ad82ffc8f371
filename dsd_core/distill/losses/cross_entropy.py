"""Cross-entropy with labels, or with the teacher's predictions in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dsd_core.distill.lazy import F, ops, torch
from dsd_core.distill.loss import Layers, LossSpec, Seen
from dsd_core.distill.signals import Labelling, Signal
from dsd_core.parts import Fraction, Weight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ce", "log_class_weights"]

IGNORE = 255


class CrossEntropy(LossSpec):
    """Cross-entropy with the labels; ignored pixels do not count, the mean is over those that do."""

    loss: Literal["ce"] = "ce"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "log"] = "none"
    """`log`: each class weighs 1 / ln(1.02 + its share of the training pixels) (ENet, Paszke et al. 2016)."""
    labels: Literal["dataset", "teacher"] = "dataset"
    """`teacher`: the class the teacher finds most probable at each pixel stands in for the label, so that images need
    none."""
    confidence: Fraction = 0.0
    """With the teacher's labels: pixels where it is less sure than this are ignored."""
    ohem: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Only pixels whose class has a probability below this count (online hard example mining)."""
    ohem_least: Fraction = 0.1
    """With ohem: at least this share of the labelled pixels counts, the hardest."""
    auxiliary: Weight = 0.4
    """Weight of the cross-entropy of the auxiliary head, where the student has one; it is part of this term."""

    needs_teacher: ClassVar[bool] = False

    @property
    def uses_teacher(self) -> bool:
        return self.labels == "teacher"

    @property
    def needs_class_shares(self) -> bool:
        return self.class_weights == "log"

    @property
    def counts_by_teacher(self) -> bool:
        return self.uses_teacher and (self.confidence > 0 or self.needs_class_shares)

    def student_layers(self) -> tuple[Layers, ...]:
        return ("auxiliary",)

    def teacher_layers(self) -> tuple[Layers, ...]:
        return ()

    def signals(self) -> tuple[Signal, ...] | None:
        return (Labelling(self.confidence),) if self.uses_teacher else ()

    def compute(self, seen: Seen) -> Tensor:
        labels = self._labels(seen)
        total = self._ce(seen.student.logits, labels, seen.class_weights)
        for logits in seen.student.inside("auxiliary"):
            grown = ops.resize(ops.widen(logits), ops.grid_of(labels))
            total = total + self.auxiliary * self._ce(grown, labels, seen.class_weights)
        return total

    def counted(self, seen: Seen) -> Tensor:
        if self.uses_teacher and not self.counts_by_teacher:
            return seen.valid_NHW.sum()
        labels = self._labels(seen)
        if not self.needs_class_shares or seen.class_weights is None:
            return (labels != IGNORE).sum()
        return seen.class_weights[labels[labels != IGNORE]].sum()

    def _labels(self, seen: Seen) -> Tensor:
        if self.labels == "dataset":
            return seen.labels_NHW
        (labels_N1HW,) = seen.told(Labelling(self.confidence))
        return labels_N1HW.squeeze(1).long().where(seen.valid_NHW, IGNORE)

    def _ce(self, logits_NKHW: Tensor, labels_NHW: Tensor, class_weights: Tensor | None) -> Tensor:
        return ce(
            logits_NKHW,
            labels_NHW,
            class_weights if self.needs_class_shares else None,
            label_smoothing=self.label_smoothing,
            ohem=self.ohem,
            ohem_least=self.ohem_least,
        )


def ce(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    ohem: float | None = None,
    ohem_least: float = 0.1,
) -> Tensor:
    """Mean over the pixels that are not 255 of the cross-entropy, weighted by class; zero where all are 255.

    Logits NKHW and labels NHW are of one size. With `ohem` only the pixels count whose class has a probability below
    it, and at least the share `ohem_least` of the labelled ones, the hardest (Shrivastava et al., CVPR 2016).
    """
    wide = ops.widen(logits)
    if ohem is not None:
        labels = labels.where(hard_pixels(wide.detach(), labels, ohem, ohem_least), IGNORE)
    mean = F.cross_entropy(wide, labels, class_weights, ignore_index=IGNORE, label_smoothing=label_smoothing)
    return mean.where((labels != IGNORE).any(), 0)


def hard_pixels(logits_NKHW: Tensor, labels_NHW: Tensor, threshold: float, least: float) -> Tensor:
    """bool NHW: labelled pixels whose class has a probability below the threshold, or among the `least` share."""
    valid = labels_NHW != IGNORE
    picked = labels_NHW.where(valid, 0).unsqueeze(1)
    probability = logits_NKHW.softmax(dim=1).gather(1, picked).squeeze(1).masked_fill(~valid, 2.0)
    ranked = probability.flatten().sort().values
    last = (valid.sum() * least).ceil().long().clamp(1, ranked.numel()) - 1
    return valid & (probability <= torch.maximum(ranked[last], ranked.new_tensor(threshold)))


def log_class_weights(shares: Tensor) -> Tensor:
    """Weights `1 / ln(1.02 + share)` of classes by their share of pixels (K), as ENet's (Paszke et al. 2016, section
    5.2)."""
    return 1.0 / torch.log(1.02 + shares)
