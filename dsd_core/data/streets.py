"""Generated street scenes: a labelled dataset that needs no files.

Every item is a function of (split, index) alone, drawn anew by `dsd_core.data.street_scene`. The classes are CamVid's,
with shares as uneven: road, building and sky fill most of an image, poles, signs and people a few pixels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dsd_core.data.camvid import PALETTE  # the classes stand in CamVid's order
from dsd_core.data.dataset import Dataset, Item, Size, resized
from dsd_core.data.street_camera import CLASSES
from dsd_core.data.street_scene import HEIGHT, VERSION, WIDTH, draw_scene
from dsd_core.errors import SpecError, unknown

IMAGES = {"train": 240, "val": 60}


def open_streets(root: Path | None, split: str, size: Size | None = None) -> Streets:
    """Generated street scenes, which need no files: 240 to train on and 60 to validate on."""
    if root is not None:
        raise SpecError(
            "Dataset 'streets' is generated and takes no root.", field="/dataset/root", hint="Leave it out."
        )
    if split not in IMAGES:
        raise unknown("split of streets", split, IMAGES)
    return Streets(split, size)


class Streets(Dataset):
    """240 training and 60 validation scenes of 96x160 pixels."""

    classes = CLASSES
    palette = PALETTE

    def __init__(self, split: str, size: Size | None = None) -> None:
        names = [f"{split}-{index:04d}" for index in range(IMAGES[split])]
        super().__init__(split, names, size or (HEIGHT, WIDTH))

    def read(self, index: int) -> Item:
        image_HW3, label_HW = draw_scene(stream=list(IMAGES).index(self.split), index=index)
        return resized(image_HW3, label_HW, self._size)

    def fingerprint(self) -> str:
        parameters = {
            "dataset": "streets",
            "version": VERSION,
            "split": self.split,
            "images": len(self),
            "size": [HEIGHT, WIDTH],
            "classes": self.classes,
        }
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
