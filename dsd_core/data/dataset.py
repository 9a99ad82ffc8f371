"""What a dataset is: a sequence of (image, label) with names and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from PIL import Image

IGNORE = 255
Size = tuple[int, int]
Palette = list[tuple[int, int, int]]
Item = tuple[np.ndarray, np.ndarray]


class Dataset(ABC):
    """Items are (image_HW3 uint8 RGB, label_HW uint8), all of one `size` (height, width).

    A label is a class id, or 255 where nothing is known.
    """

    classes: tuple[str, ...]
    palette: Palette

    def __init__(self, split: str, names: list[str], size: Size) -> None:
        self.split = split
        self.names = names
        self.size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        """The item; IndexError past the end, DataError where its files cannot be used."""
        return self.read(range(len(self.names))[index])

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def read(self, index: int) -> Item:
        """The item at 0 <= index < len, read anew."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the names and the content in their own size: equal for equal data, wherever it lies."""


def resized(image_HW3: np.ndarray, label_HW: np.ndarray, size: Size) -> Item:
    """Image bilinear (averaging when it shrinks), label nearest, to (height, width)."""
    if label_HW.shape == size:
        return image_HW3, label_HW
    width_height = (size[1], size[0])
    image = Image.fromarray(image_HW3).resize(width_height, Image.Resampling.BILINEAR)
    label = Image.fromarray(label_HW).resize(width_height, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(label)
