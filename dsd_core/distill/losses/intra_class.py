"""Intra-class feature variation: Wang, Zhou, Jiang, Bai, Xu, ECCV 2020."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops, torch
from dsd_core.distill.loss import FeatureLoss, Seen

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ifvd"]


class IntraClass(FeatureLoss):
    """IFVD: squared difference of the cosines between each position's feature and the mean feature of its class."""

    loss: Literal["ifvd"] = "ifvd"

    @property
    def uses_labels(self) -> bool:
        return True

    def compute(self, seen: Seen) -> Tensor:
        classes = seen.student.logits.shape[1]
        return self.mean_over_pairs(seen, partial(ifvd, labels=seen.labels_NHW, classes=classes, valid=seen.valid_NHW))

    def counted(self, seen: Seen) -> Tensor:
        return ops.valid_on(seen.valid_NHW, seen.student.inside(self.on)[0]).sum()


def ifvd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, classes: int | None = None, valid: Tensor | None = None
) -> Tensor:
    """Mean over labelled positions of `(cos(F_S, mu_S) - cos(F_T, mu_T))^2`, mu the image's mean feature of the class.

    Features are NCHW; channels may differ, and the teacher's are resized to the student's grid. `labels` (NHW, any
    size) are taken at the centres of the grid's cells; ids outside 0..classes-1 (by default: 255) and positions outside
    `valid` do not count. Class means and cosines are two matrix products with the one-hot labels.
    """
    student, teacher = ops.on_one_grid(student, teacher)
    if classes is None:
        classes = int(labels.where(labels != 255, 0).max()) + 1
    labels = ops.labels_on(labels, ops.grid_of(student))
    counts = ops.valid_on(valid, student) & (labels >= 0) & (labels < classes)
    hot_NKP = ops.one_hot(labels, classes, counts, student.dtype)
    cosine_S = _cosine_to_class(student, hot_NKP)
    with torch.no_grad():
        cosine_T = _cosine_to_class(teacher, hot_NKP)
    return ops.masked_mean((cosine_S - cosine_T).square(), counts.flatten(1))


def _cosine_to_class(feature_NCHW: Tensor, hot_NKP: Tensor) -> Tensor:
    """N x P: cosine of each position with the mean of its class; zero where it has none."""
    feature_NPC = feature_NCHW.flatten(2).transpose(1, 2)
    means_NKC = hot_NKP @ feature_NPC / hot_NKP.sum(dim=2, keepdim=True).clamp_min(1)
    cosine_NPK = ops.normalize(feature_NPC) @ ops.normalize(means_NKC).transpose(1, 2)
    return (cosine_NPK * hot_NKP.transpose(1, 2)).sum(dim=2)
