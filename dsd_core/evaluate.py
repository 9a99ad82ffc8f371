"""Scoring: a confusion matrix first, every figure from its counts.

A pixel is left out where its *label* is 255, never by its prediction. A class absent from labels and predictions has
no IoU (None) and does not enter the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from dsd_core import dist
from dsd_core.boundary import boundary_counts
from dsd_core.data.dataset import IGNORE, Dataset
from dsd_core.data.loader import Batch, eval_batches
from dsd_core.errors import Interrupted
from dsd_core.events import Evaluated, Event, FurtherSeed, Score, Subject
from dsd_core.inference import LogitsOf, predictor
from dsd_core.spec import Evaluation


@dataclass
class Confusion:
    """Counts K x K: rows are labels, columns predictions. Sums over images, and over processes, are exact.

    With `boundary` it also counts, 2 x K, the pixels in intersection and union of the boundary bands.
    """

    classes: int
    boundary: bool = False
    counts: np.ndarray = field(init=False)
    boundary_counts: np.ndarray = field(init=False)
    images: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), dtype=np.int64)
        self.boundary_counts = np.zeros((2, self.classes), dtype=np.int64)

    def add(self, predicted_NHW: Tensor, labels_NHW: Tensor) -> None:
        """Count a batch of class ids; labels are 0..K-1 or 255."""
        valid = labels_NHW != IGNORE
        cell = labels_NHW[valid].long() * self.classes + predicted_NHW[valid].long()
        counts = torch.bincount(cell, minlength=self.classes**2)
        self.counts += counts.reshape(self.classes, self.classes).cpu().numpy()
        if self.boundary:
            self.boundary_counts += boundary_counts(predicted_NHW, labels_NHW, self.classes).cpu().numpy()
        self.images += len(labels_NHW)

    def __add__(self, other: Confusion) -> Confusion:
        """Both sets of images together; `other` has the same classes and the same `boundary`."""
        assert (self.classes, self.boundary) == (other.classes, other.boundary)
        return self._of(self._flat() + other._flat())

    def reduced(self) -> Confusion:
        """The sum over all processes (`dsd_core.dist`), in each of them; alone, its own counts."""
        if dist.world() == 1:
            return self
        total = torch.from_numpy(self._flat())
        dist.sum_([total])
        return self._of(total.numpy())

    def iou(self) -> np.ndarray:
        """IoU of each class, NaN where it is absent."""
        hit = np.diag(self.counts)
        return _ratios(hit, self.counts.sum(0) + self.counts.sum(1) - hit)

    def accuracy(self) -> np.ndarray:
        """Share of each class's labelled pixels that are predicted as it (recall), NaN where no pixel is labelled."""
        return _ratios(np.diag(self.counts), self.counts.sum(1))

    def boundary_iou(self) -> np.ndarray:
        """Boundary IoU of each class, NaN where neither labels nor predictions have an outline of it."""
        return _ratios(*self.boundary_counts)

    def score(self, names: Iterable[str]) -> Score:
        """Every figure; those of the boundary only where it was counted."""
        names = tuple(names)
        total, iou, accuracy = self.counts.sum(), self.iou(), self.accuracy()
        boundary_iou = self.boundary_iou()
        return Score(
            miou=_mean(iou),
            pixel_accuracy=float(np.diag(self.counts).sum() / total) if total else None,
            per_class_iou=_named(names, iou),
            class_accuracy=_mean(accuracy),
            per_class_accuracy=_named(names, accuracy),
            boundary_iou=_mean(boundary_iou) if self.boundary else None,
            per_class_boundary_iou=_named(names, boundary_iou) if self.boundary else {},
        )

    def _flat(self) -> np.ndarray:
        return np.concatenate([self.counts.ravel(), self.boundary_counts.ravel(), [self.images]])

    def _of(self, flat: np.ndarray) -> Confusion:
        made = Confusion(self.classes, self.boundary, images=int(flat[-1]))
        cells = self.classes**2
        made.counts = flat[:cells].reshape(self.counts.shape)
        made.boundary_counts = flat[cells:-1].reshape(self.boundary_counts.shape)
        return made


def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[Batch], classes: tuple[str, ...], *, boundary: bool = False
) -> tuple[Score, int, float]:
    """Score `predict` (uint8 images N3HW to logits NKHW) over the batches. Returns the score, the images and the
    seconds.

    Of several processes each gives its own share of the batches, and all get the score of the whole.
    """
    start = time.perf_counter()
    confusion = Confusion(len(classes), boundary)
    with torch.inference_mode():
        for batch in batches:
            confusion.add(predict(batch.images_N3HW).argmax(dim=1), batch.labels_NHW)
    whole = confusion.reduced()
    return whole.score(classes), whole.images, time.perf_counter() - start


def score_split(
    network: LogitsOf,
    data: Dataset,
    options: Evaluation,
    emit: Callable[[Event], None],
    goes_on: Callable[[], bool],
    device: torch.device,
    *,
    subject: Subject,
    seed: FurtherSeed = None,
    step: int = 0,
    total_step: int = 0,
) -> Score:
    """`evaluate` a network that looks at a split as `options` say, and make an event of its score.

    `goes_on` is asked before each batch. Raises Interrupted, in all processes, after it said no in one of them.
    """
    share = eval_batches(data, options.batch, rank=dist.rank(), of=dist.world())
    batches = (batch.to(device) for batch in takewhile(lambda batch: goes_on(), share))
    score, images, seconds = evaluate(predictor(network, options), batches, data.classes, boundary=options.boundary)
    if images < len(data):
        raise Interrupted(f"Stopped while the {subject} was scored.")
    emit(
        Evaluated(
            subject=subject,
            seed=seed,
            step=step,
            total_step=total_step,
            images=images,
            seconds=seconds,
            **score.model_dump(),
        )
    )
    return score


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def _named(names: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
