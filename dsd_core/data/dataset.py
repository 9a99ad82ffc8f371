"""What a dataset is: a sequence of (image, label) with names and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from PIL import Image

IGNORE = 255
MOST_CLASSES = 255
SPLITS = ("train", "val", "test")
Size = tuple[int, int]
Palette = list[tuple[int, int, int]]
Item = tuple[np.ndarray, np.ndarray]


class Dataset(ABC):
    """Items are (image_HW3 uint8 RGB, label_HW int64); `read` gives labels as uint8, which takes an eighth of the room.

    A label is a class id, or 255 where nothing is known. With a `size` (height, width) every item has it; with None
    each keeps its own.
    """

    classes: tuple[str, ...]
    palette: Palette
    labelled: bool = True
    """False: nothing is known about any pixel, every label is 255."""

    def __init__(self, split: str, names: list[str], size: Size | None) -> None:
        self.split = split
        self.names = names
        self._size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        """The item; IndexError past the end, DataError where its files cannot be used."""
        image_HW3, label_HW = self.read(range(len(self.names))[index])
        return image_HW3, label_HW.astype(np.int64)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def size(self) -> Size:
        """(height, width) of the first item, and of all where `same_size`."""
        return self.size_of(0)

    @property
    def same_size(self) -> bool:
        """All items have one size. Reads headers until two differ."""
        return all(self.size_of(index) == self.size for index in range(1, len(self)))

    def size_of(self, index: int) -> Size:
        """(height, width) of an item."""
        return self._size or self._own_size(index)

    def digests(self, index: int) -> tuple[bytes, ...]:
        """SHA-256 of an item's files, the image's first; empty where it has none."""
        return ()

    @abstractmethod
    def read(self, index: int) -> Item:
        """The item at 0 <= index < len, read anew, its label as uint8."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the names and the content in their own size: equal for equal data, wherever it lies."""

    def _own_size(self, index: int) -> Size:
        height, width = self.read(index)[1].shape
        return height, width


def resized(image_HW3: np.ndarray, label_HW: np.ndarray, size: Size | None) -> Item:
    """Image bilinear (averaging when it shrinks), label nearest, to (height, width); None leaves both as they are."""
    if size is None or label_HW.shape == size:
        return image_HW3, label_HW
    width_height = (size[1], size[0])
    image = Image.fromarray(image_HW3).resize(width_height, Image.Resampling.BILINEAR)
    label = Image.fromarray(label_HW).resize(width_height, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(label)
