"""The task: a student, perhaps a teacher, and the list of losses between them. It returns its parts."""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.data.loader import Batch
from dsd_core.distill import losses as L
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.spec import CategorySimilarity, CrossEntropy, LogitDistillation, Loss, PixelSimilarity

IGNORE = 255


class DistillTask(nn.Module):
    """Computes every loss of the list for a batch. Only the student has parameters that learn.

    `student_layers` and `teacher_layers` map `taps` and `head` to module names, shallow to deep; hooks exist only for
    the kinds the losses use. `class_weights` (K) weigh the cross-entropy.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Frozen | None,
        losses: tuple[Loss, ...],
        *,
        student_layers: dict[str, tuple[str, ...]],
        teacher_layers: dict[str, tuple[str, ...]],
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.losses = losses
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._hooks = ExitStack()
        self._taps: dict[str, tuple[Taps, Taps]] = {}
        for kind in sorted({loss.layers for loss in losses if isinstance(loss, PixelSimilarity)}):
            assert teacher is not None
            self._taps[kind] = (
                self._hooks.enter_context(Taps(student.network, student_layers[kind])),
                self._hooks.enter_context(Taps(teacher.network, teacher_layers[kind], field="/teacher/taps")),
            )

    def close(self) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each unweighted term by name, and `loss`, their weighted sum; all scalars in float32."""
        logits_S = self.student(batch.images_N3HW)
        logits_T = None
        if self.teacher is not None:
            with torch.no_grad():
                logits_T = self.teacher(batch.images_N3HW)
        maps = {kind: (S.features(), T.features()) for kind, (S, T) in self._taps.items()}
        with torch.autocast(logits_S.device.type, enabled=False):
            terms: dict[str, Tensor] = {
                loss.loss: self._term(loss, logits_S, logits_T, batch, maps) for loss in self.losses
            }
            terms["loss"] = torch.stack([loss.weight * terms[loss.loss] for loss in self.losses]).sum()
        return terms

    def _term(
        self,
        loss: Loss,
        logits_S: Tensor,
        logits_T: Tensor | None,
        batch: Batch,
        maps: dict[str, tuple[list[Tensor], list[Tensor]]],
    ) -> Tensor:
        labels = batch.labels_NHW
        if isinstance(loss, CrossEntropy):
            return cross_entropy(logits_S, labels, self.class_weights, loss.label_smoothing)
        assert logits_T is not None
        match loss:
            case LogitDistillation():
                return L.kd(logits_S, logits_T, temperature=loss.temperature, valid=labels != IGNORE)
            case PixelSimilarity():
                grid = (max(labels.shape[-2] // loss.stride, 1), max(labels.shape[-1] // loss.stride, 1))
                student_maps, teacher_maps = maps[loss.layers]
                return L.pixel_similarity(
                    student_maps, teacher_maps, pairs=loss.pairs, reduction=loss.reduction, grid=grid
                )
            case CategorySimilarity():
                present = present_classes(logits_T, labels) if loss.present_only else None
                return L.category_similarity(
                    logits_S,
                    logits_T,
                    tau=loss.tau,
                    softmax=loss.softmax,
                    normalize=loss.normalize,
                    pool=loss.pool,
                    present=present,
                )


def cross_entropy(
    logits_NKHW: Tensor, labels_NHW: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over the pixels that are not ignored, weighted by class; zero where all are ignored."""
    per_pixel = F.cross_entropy(
        logits_NKHW.float(),
        labels_NHW,
        class_weights,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    valid = labels_NHW != IGNORE
    if class_weights is None:
        return per_pixel.sum() / valid.sum().clamp_min(1)
    weight = class_weights[labels_NHW.where(valid, 0)] * valid
    return per_pixel.sum() / weight.sum().clamp_min(1e-6)


def present_classes(logits_NKHW: Tensor, labels_NHW: Tensor) -> Tensor:
    """bool N x K: the class is in the argmax of the logits or among the labels of the image."""
    images, classes = logits_NKHW.shape[:2]
    found = torch.zeros(images, classes + 1, dtype=torch.bool, device=logits_NKHW.device)
    found.scatter_(1, logits_NKHW.argmax(dim=1).flatten(1), True)
    found.scatter_(1, labels_NHW.where(labels_NHW != IGNORE, classes).flatten(1), True)
    return found[:, :classes]


def log_class_weights(shares: Tensor) -> Tensor:
    """Weights `1 / ln(1.02 + share)` of classes by their share of pixels (K), as ENet's (Paszke et al. 2016, section
    5.2)."""
    return 1.0 / torch.log(1.02 + shares)
