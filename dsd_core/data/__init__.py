"""Labelled images by name: `open_dataset("camvid", root, "train")`.

Numpy and Pillow only; torch enters in `views` and `loader`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsd_core.data.camvid import open_camvid
from dsd_core.data.dataset import IGNORE, Dataset, Size
from dsd_core.data.streets import open_streets
from dsd_core.errors import unknown

__all__ = ["DATASETS", "IGNORE", "Dataset", "open_dataset"]

DATASETS: dict[str, Callable[[Path | None, str, Size | None], Dataset]] = {
    "camvid": open_camvid,
    "streets": open_streets,
}


def open_dataset(name: str, root: str | Path | None, split: str, size: Size | None = None) -> Dataset:
    """The split of a dataset, its images resized to `size` (height, width) where one is given.

    Folders and lists are read, images are not.
    Raises SpecError for an unknown dataset or split, DataError for what is missing.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS, field="/dataset/name")
    return DATASETS[name](None if root is None else Path(root), split, size)
