"""ADE20K as the scene parsing benchmark packs it: ADEChallengeData2016, 150 classes (Zhou et al., CVPR 2017).

`ROOT/images/{training,validation}/NAME.jpg` and `ROOT/annotations/{training,validation}/NAME.png` with ids 1..150, and
0 for what is ignored. `ade20k.txt` holds the colours and the first name of each class of the benchmark's
objectInfo150.txt, in its order.
"""

from __future__ import annotations

from pathlib import Path

from dsd_core.data.class_list import class_rows
from dsd_core.data.dataset import Palette, Size
from dsd_core.data.labels import id_table, labels_by_table
from dsd_core.data.pairs import PairedImages, find_files, need_root, need_split, pair_up

FOLDERS = {"train": "training", "val": "validation"}
ROWS = class_rows("ade20k.txt")
CLASSES = tuple(name for *_, name in ROWS)
PALETTE: Palette = [(int(red), int(green), int(blue)) for red, green, blue, _ in ROWS]
LABELS = labels_by_table(CLASSES, PALETTE, id_table({number + 1: number for number in range(len(CLASSES))}, [0]))
LAYOUT = (
    "The folder must hold images/training, images/validation, annotations/training and annotations/validation, as "
    "ADEChallengeData2016.zip unpacks."
)


def open_ade20k(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """ADE20K: ADEChallengeData2016 with images/ and annotations/, 150 classes, 0 is ignored."""
    need_split("ade20k", split, FOLDERS)
    root = need_root("ade20k", root, LAYOUT)
    images, masks = (find_files(root / part / FOLDERS[split], LAYOUT) for part in ("images", "annotations"))
    return PairedImages("ade20k", split, pair_up(images, masks, LAYOUT), LABELS, size)
