"""CamVid in the SegNet layout, 11 classes (Brostow, Shotton, Fauqueur, Cipolla 2008; split of Badrinarayanan et al.).

`ROOT/SPLIT/NAME.png` is an RGB image, `ROOT/SPLITannot/NAME.png` its single-channel mask of class ids. Where
`ROOT/SPLIT.txt` exists, the first word of each line names an image; only base names count, for the published lists hold
the paths of their authors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from dsd_core.data.dataset import IGNORE, Dataset, Item, Size, resized
from dsd_core.data.image_file import image_size, read_image, read_mask
from dsd_core.errors import DataError, unknown

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
PALETTE = [
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
]
VOID = 11
SPLITS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
LISTED_NAMES = 20
FIELD = "/dataset/root"
LAYOUT = (
    "The folder must hold train/ and val/ with images, and trainannot/ and valannot/ with a PNG mask of the same name "
    "for each (CamVid in the SegNet layout)."
)


def open_camvid(root: Path | None, split: str, size: Size | None = None) -> CamVid:
    """Raises SpecError for an unknown split, DataError for a missing folder, an empty split and missing files."""
    if split not in SPLITS:
        raise unknown("split of camvid", split, SPLITS)
    if root is None:
        raise DataError("Dataset 'camvid' needs a root folder.", field=FIELD, hint=LAYOUT)
    images, masks = root / split, root / f"{split}annot"
    for folder in (root, images, masks):
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}.", field=FIELD, hint=LAYOUT)
    names = _names(root, split)
    if not names:
        raise DataError(f"The split {split!r} in {root} holds no image.", field=FIELD, hint=LAYOUT)
    _refuse_missing(images, "image", (name for name in names if not (images / name).is_file()), len(names))
    _refuse_missing(masks, "annotation", (name for name in names if not _mask(masks, name).is_file()), len(names))
    return CamVid(root, split, names, size or image_size(images / names[0], FIELD), fixed=size is not None)


class CamVid(Dataset):
    """Opened by `open_camvid`. Without a `size` asked for (`fixed`), every image must have the first one's."""

    classes = CLASSES
    palette = PALETTE

    def __init__(self, root: Path, split: str, names: list[str], size: Size, fixed: bool) -> None:
        super().__init__(split, names, size)
        self.root = root
        self._fixed = fixed

    def image_path(self, index: int) -> Path:
        return self.root / self.split / self.names[index]

    def mask_path(self, index: int) -> Path:
        return _mask(self.root / f"{self.split}annot", self.names[index])

    def read(self, index: int) -> Item:
        image_HW3 = read_image(self.image_path(index), FIELD)
        label_HW = read_mask(self.mask_path(index), FIELD)
        if image_HW3.shape[:2] != label_HW.shape:
            raise DataError(
                f"{self.mask_path(index)} is {_text(label_HW.shape)}, its image {_text(image_HW3.shape)}.",
                field=FIELD,
                hint="A mask must have its image's size.",
            )
        if not self._fixed and label_HW.shape != self.size:
            raise DataError(
                f"{self.image_path(index)} is {_text(label_HW.shape)}, the first of the split {_text(self.size)}.",
                field="/dataset/size",
                hint="Set /dataset/size (height, width) to bring all images to one size.",
            )
        return resized(image_HW3, self._translated(label_HW, index), self.size)

    def fingerprint(self) -> str:
        def digest(path: Path) -> bytes:
            return hashlib.sha256(path.read_bytes()).digest()

        paths = [path for index in range(len(self)) for path in (self.image_path(index), self.mask_path(index))]
        total = hashlib.sha256(f"camvid {self.split}\n".encode() + "\n".join(self.names).encode())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in pool.map(digest, paths):
                total.update(part)
        return total.hexdigest()

    def _translated(self, label_HW: np.ndarray, index: int) -> np.ndarray:
        """Ids 0..10 stay, 11 (void) becomes 255; raises DataError for others."""
        if int(label_HW.max()) > VOID:
            strange = [str(value) for value in np.unique(label_HW) if value > VOID][:LISTED_NAMES]
            raise DataError(
                f"{self.mask_path(index)} holds the ids {', '.join(strange)}; allowed are 0..{VOID}.",
                field=FIELD,
                hint=f"0..{VOID - 1} are the classes, {VOID} is void; translate other ids beforehand.",
            )
        return np.where(label_HW == VOID, np.uint8(IGNORE), label_HW)


def _names(root: Path, split: str) -> list[str]:
    listing = root / f"{split}.txt"
    if not listing.is_file():
        return sorted(path.name for path in (root / split).iterdir() if path.suffix.lower() in SUFFIXES)
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{listing} cannot be read: {error}.", field=FIELD, hint="It must be text, one image a line."
        ) from error
    return list(dict.fromkeys(PurePosixPath(line.split()[0]).name for line in lines if line.strip()))


def _mask(folder: Path, name: str) -> Path:
    return folder / Path(name).with_suffix(".png").name


def _refuse_missing(folder: Path, kind: str, missing: Iterable[str], total: int) -> None:
    names = list(missing)
    if names:
        more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
        raise DataError(
            f"{folder} lacks the {kind} of {len(names)} of {total} names: {', '.join(names[:LISTED_NAMES])}{more}.",
            field=FIELD,
            hint=LAYOUT,
        )


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
