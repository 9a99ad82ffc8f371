"""Scoring: a confusion matrix first, every figure from its counts.

A pixel is left out where its *label* is 255, never by its prediction. A class absent from labels and predictions has
no IoU (None) and does not enter the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dsd_core.data.loader import Batch
from dsd_core.events import Score

IGNORE = 255


@dataclass
class Confusion:
    """Counts K x K: rows are labels, columns predictions. Sums over images, and over processes, are exact."""

    classes: int
    counts: np.ndarray = field(init=False)
    images: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), dtype=np.int64)

    def add(self, predicted_NHW: Tensor, labels_NHW: Tensor) -> None:
        """Count a batch of class ids; labels are 0..K-1 or 255."""
        valid = labels_NHW != IGNORE
        cell = labels_NHW[valid].long() * self.classes + predicted_NHW[valid].long()
        counts = torch.bincount(cell, minlength=self.classes**2)
        self.counts += counts.reshape(self.classes, self.classes).cpu().numpy()
        self.images += len(labels_NHW)

    def iou(self) -> np.ndarray:
        """IoU of each class, NaN where it is absent."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return np.divide(hit, union, out=np.full(self.classes, np.nan), where=union > 0)

    def score(self, names: Iterable[str]) -> Score:
        iou = self.iou()
        total = self.counts.sum()
        present = iou[~np.isnan(iou)]
        return Score(
            miou=float(present.mean()) if len(present) else None,
            pixel_accuracy=float(np.diag(self.counts).sum() / total) if total else None,
            per_class_iou={name: None if np.isnan(x) else float(x) for name, x in zip(names, iou, strict=True)},
        )


def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[Batch], classes: tuple[str, ...]
) -> tuple[Score, int, float]:
    """Score `predict` (uint8 images N3HW to logits NKHW) over the batches. Returns the score, the images and the
    seconds."""
    start = time.perf_counter()
    confusion = Confusion(len(classes))
    with torch.inference_mode():
        for batch in batches:
            confusion.add(predict(batch.images_N3HW).argmax(dim=1), batch.labels_NHW)
    return confusion.score(classes), confusion.images, time.perf_counter() - start
