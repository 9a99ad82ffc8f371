"""Batches of views for training, and of whole images for evaluation.

The order of an epoch is a function of (seed, epoch), a view of (seed, epoch, image): a run that starts at step k sees
what one that ran from the start sees after k steps, with any number of loader processes, and nothing needs to be saved
or replayed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from dsd_core.data.cache import cached
from dsd_core.data.dataset import IGNORE, Dataset, Size
from dsd_core.data.views import ORDER, Key, View, place_view, show_view, uniforms
from dsd_core.spec import Augment, Training

__all__ = ["Batch", "ViewSet", "cached", "eval_batches", "steps_per_epoch", "train_batches"]

Draw = tuple[int, int]
"""(epoch, number): the image is `number` modulo their count, which it exceeds where a batch is the larger."""
Drawn = tuple[Tensor, Tensor, int, View]
"""A view: image, label, index of its image, and which part of that it shows."""


@dataclass(frozen=True)
class Batch:
    """`images_N3HW` uint8 RGB, channels last in memory; `labels_NHW` int64, 255 = ignore; `indices` of the images."""

    images_N3HW: Tensor
    labels_NHW: Tensor
    indices: tuple[int, ...]
    labelled: bool = True
    """False: the dataset knows nothing of its pixels, all labels are 255."""
    inside_NHW: Tensor | None = None
    """Of views without labels: bool, False on the padding around a small image; None where there is no padding."""
    views: tuple[View, ...] = ()
    """Which part of its image each shows; whole images have none."""

    @property
    def valid_NHW(self) -> Tensor:
        """bool, True where a loss counts: where a label is known, or, without labels, where the image is."""
        if self.labelled:
            return self.labels_NHW != IGNORE
        return torch.ones_like(self.labels_NHW, dtype=torch.bool) if self.inside_NHW is None else self.inside_NHW

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader."""
        return self.map(Tensor.pin_memory)

    def split(self, parts: int) -> list[Batch]:
        """As many parts with nearly the same number of images, in order; itself where it is one."""
        if parts == 1:
            return [self]
        ends = [len(self) * part // parts for part in range(parts + 1)]
        return [self._part(slice(start, end)) for start, end in pairwise(ends)]

    def _part(self, images: slice) -> Batch:
        part = self.map(lambda tensor: tensor[images])
        return replace(part, indices=self.indices[images], views=self.views[images])

    def map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors as `move` gives it."""
        inside_NHW = None if self.inside_NHW is None else move(self.inside_NHW)
        return replace(
            self, images_N3HW=move(self.images_N3HW), labels_NHW=move(self.labels_NHW), inside_NHW=inside_NHW
        )


@dataclass(frozen=True)
class ViewSet:
    """The same few views of each image again and again, drawn from a seed of their own."""

    count: int
    seed: int

    def key(self, epoch: int, number: int, images: int, batch: int) -> Key:
        """What draw `number` of an epoch shows: view 0 .. count - 1 of its image, another each time it comes."""
        visit, index = divmod(number, images)
        return self.seed, (epoch * -(-batch // images) + visit) % self.count, index


def steps_per_epoch(images: int, batch: int) -> int:
    """Full batches in the dataset, at least one: a dataset smaller than a batch is gone through several times."""
    return max(1, images // batch)


def train_batches(
    dataset: Dataset,
    training: Training,
    first_step: int,
    steps: int,
    *,
    rank: int = 0,
    of: int = 1,
    views: ViewSet | None = None,
) -> Iterator[Batch]:
    """The batches of the optimiser steps first_step + 1 .. steps, over as many epochs as that takes; of each the share
    of one of `of` processes, every image in exactly one. Views are fresh in every epoch, unless they are of a set.

    Neither depends on torch's global generator nor advances it. Loader processes end with the iterator.
    """
    loader = DataLoader(
        _Views(dataset, training, views),
        batch_sampler=_Schedule(len(dataset), training, first_step, steps, slice(rank, None, of)),
        num_workers=training.loaders,
        collate_fn=partial(_batch, labelled=dataset.labelled),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )
    return iter(loader)


def eval_batches(dataset: Dataset, batch: int, *, rank: int = 0, of: int = 1) -> Iterator[Batch]:
    """All images whole; those of one size follow one another, in the dataset's order, and share batches of up to
    `batch`. Of several processes each gets every `of`-th batch."""
    groups = _by_size(dataset).values()
    batches = [indices[start : start + batch] for indices in groups for start in range(0, len(indices), batch)]
    for indices in batches[rank::of]:
        yield _whole(dataset, indices)


def _by_size(dataset: Dataset) -> dict[Size, list[int]]:
    groups: dict[Size, list[int]] = {}
    for index in range(len(dataset)):
        groups.setdefault(dataset.size_of(index), []).append(index)
    return groups


def _whole(dataset: Dataset, indices: list[int]) -> Batch:
    items = [dataset.read(index) for index in indices]
    images_N3HW = torch.from_numpy(np.stack([image for image, _ in items])).permute(0, 3, 1, 2)
    labels_NHW = torch.from_numpy(np.stack([label for _, label in items])).long()
    return Batch(images_N3HW, labels_NHW, tuple(indices), dataset.labelled)


class _Schedule(Sampler[list[Draw]]):
    """What each step draws; any step can be the first, for nothing before it is computed."""

    def __init__(self, images: int, training: Training, first_step: int, steps: int, share: slice) -> None:
        self.images = images
        self.training = training
        self.first_step = first_step
        self.steps = steps
        self.share = share

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        batch = self.training.batch
        per_epoch = steps_per_epoch(self.images, batch)
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            places = range(position * batch, (position + 1) * batch)[self.share]
            yield [(epoch, self._number(order, place)) for place in places]

    def _order(self, epoch: int) -> np.ndarray:
        return np.argsort(uniforms(self.training.seed, epoch, 0, ORDER, self.images), kind="stable")

    def _number(self, order: np.ndarray, place: int) -> int:
        rounds, place = divmod(place, self.images)
        return rounds * self.images + int(order[place])


class _Views(TorchDataset[Drawn]):
    def __init__(self, dataset: Dataset, training: Training, views: ViewSet | None) -> None:
        self.dataset = dataset
        self.training = training
        self.views = views

    def __getitem__(self, draw: Draw) -> Drawn:
        epoch, number = draw
        index = number % len(self.dataset)
        key = (self.training.seed, epoch, number)
        if self.views is not None:
            key = self.views.key(epoch, number, len(self.dataset), self.training.batch)
        image, label, view = read_view(self.dataset, index, self.training.augment, key)
        return image, label, index, view


def read_view(dataset: Dataset, index: int, augment: Augment, key: Key) -> tuple[Tensor, Tensor, View]:
    """A view of an image as (image 3HW uint8, label HW int64), and what it shows. Without labels the label is 0, and
    255 on padding."""
    image_HW3, label_HW = dataset.read(index)
    view = place_view(label_HW.shape, augment, key)
    return *show_view(image_HW3, label_HW if dataset.labelled else np.zeros_like(label_HW), view), view


def _batch(views: list[Drawn], labelled: bool) -> Batch:
    height, width = views[0][1].shape
    images_N3HW = torch.empty((len(views), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, (image, *_) in zip(images_N3HW, views, strict=True):
        row.copy_(image)
    _, labels, indices, shown = zip(*views, strict=True)
    labels_NHW = torch.stack(labels)
    if labelled:
        return Batch(images_N3HW, labels_NHW, indices, views=shown)
    return Batch(images_N3HW, torch.full_like(labels_NHW, IGNORE), indices, False, labels_NHW != IGNORE, shown)


def _outlive_signals(worker: int) -> None:
    """A stop is for the trainer, which still wants batches until its checkpoint; loader processes end after it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
