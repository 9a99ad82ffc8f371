"""Labelled images by name: `open_dataset("camvid", root, "train")`.

Numpy and Pillow only; torch enters in `views` and `loader`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsd_core.data.ade20k import open_ade20k
from dsd_core.data.camvid import open_camvid
from dsd_core.data.cityscapes import open_cityscapes
from dsd_core.data.coco_stuff import open_coco_stuff
from dsd_core.data.dataset import IGNORE, Dataset, Size
from dsd_core.data.folder import open_folder
from dsd_core.data.manifest import open_manifest
from dsd_core.data.streets import open_streets
from dsd_core.data.voc import open_voc2012, open_voc2012_aug
from dsd_core.errors import unknown

__all__ = ["DATASETS", "IGNORE", "Dataset", "open_dataset"]

DATASETS: dict[str, Callable[[Path | None, str, Size | None], Dataset]] = {
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "voc2012": open_voc2012,
    "voc2012_aug": open_voc2012_aug,
    "coco_stuff": open_coco_stuff,
    "folder": open_folder,
    "manifest": open_manifest,
    "streets": open_streets,
}


def open_dataset(name: str, root: str | Path | None, split: str, size: Size | None = None) -> Dataset:
    """The split (train, val or test) of a dataset, its images resized to `size` (height, width) where one is given.

    Folders and lists are read, images are not. Raises SpecError for a dataset or split that does not exist,
    NoSplitError for one that is not below this root, DataError for all else that is missing.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS, field="/dataset/name")
    return DATASETS[name](None if root is None else Path(root), split, size)
