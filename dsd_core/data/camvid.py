"""CamVid in the SegNet layout, 11 classes (Brostow, Shotton, Fauqueur, Cipolla 2008; split of Badrinarayanan et al.).

`ROOT/SPLIT/NAME.png` is an RGB image, `ROOT/SPLITannot/NAME.png` its single-channel mask of class ids. Where
`ROOT/SPLIT.txt` exists, the first word of each line names an image; only base names count, for the published lists hold
the paths of their authors.
"""

from __future__ import annotations

from pathlib import Path

from dsd_core.data.dataset import Size
from dsd_core.data.labels import id_table, labels_by_table
from dsd_core.data.pairs import PairedImages, base_names, find_files, need_root, need_split, pair_up

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
LABELS = labels_by_table(CLASSES, PALETTE, id_table({number: number for number in range(VOID)}, [VOID]))
LAYOUT = (
    "The folder must hold train/ and val/ with images, and trainannot/ and valannot/ with a PNG mask of the same name "
    "for each (CamVid in the SegNet layout)."
)


def open_camvid(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """CamVid in the SegNet layout: train/, trainannot/, val/, valannot/ with ids 0..10, 11 for void."""
    need_split("camvid", split)
    root = need_root("camvid", root, LAYOUT)
    images, masks = find_files(root / split, LAYOUT), find_files(root / f"{split}annot", LAYOUT)
    listing = root / f"{split}.txt"
    pairs = pair_up(images, masks, LAYOUT, base_names(listing) if listing.is_file() else None)
    return PairedImages("camvid", split, pairs, LABELS, size)
