"""Decoded images kept in memory."""

from __future__ import annotations

import threading

from dsd_core.data.dataset import Dataset, Item, Size


def cached(dataset: Dataset, limit_bytes: int = 1 << 30) -> Dataset:
    """The same dataset; items are kept decoded until they hold `limit_bytes`, later ones are read anew each time."""
    return Cached(dataset, limit_bytes)


class Cached(Dataset):
    """First come, first kept: epochs visit every item equally often, so evicting one for another would gain nothing."""

    def __init__(self, dataset: Dataset, limit_bytes: int) -> None:
        super().__init__(dataset.split, dataset.names, None)
        self.classes = dataset.classes
        self.palette = dataset.palette
        self.labelled = dataset.labelled
        self._dataset = dataset
        self._left_bytes = limit_bytes
        self._items: dict[int, Item] = {}
        self._lock = threading.Lock()

    def read(self, index: int) -> Item:
        if index in self._items:
            return self._items[index]
        item = self._dataset.read(index)
        size = item[0].nbytes + item[1].nbytes
        with self._lock:
            if index not in self._items and size <= self._left_bytes:
                self._left_bytes -= size
                self._items[index] = item
        return item

    def size_of(self, index: int) -> Size:
        if index in self._items:
            height, width = self._items[index][1].shape
            return height, width
        return self._dataset.size_of(index)

    def digests(self, index: int) -> tuple[bytes, ...]:
        return self._dataset.digests(index)

    def fingerprint(self) -> str:
        return self._dataset.fingerprint()
