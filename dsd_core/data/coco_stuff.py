"""COCO-Stuff 164k, 171 classes of things and stuff (Caesar, Uijlings, Ferrari, CVPR 2018).

Images of COCO 2017 in `ROOT/images/{train2017,val2017}` or `ROOT/{train2017,val2017}`, masks of the same names in
`annotations/` or `stuffthingmaps/`. A mask holds the published label minus 1: 0..181, of which 11 never occur and are
ignored here, and 255. `coco_stuff.txt` holds the other 171 with their names, in order.
"""

from __future__ import annotations

from pathlib import Path

from dsd_core.data.class_list import class_rows, voc_palette
from dsd_core.data.dataset import IGNORE, Size
from dsd_core.data.labels import id_table, labels_by_table
from dsd_core.data.pairs import PairedImages, find_files, need_root, need_split, pair_up

FOLDERS = {"train": "train2017", "val": "val2017"}
IMAGES, MASKS = ("images", "."), ("annotations", "stuffthingmaps")
TRAIN_IDS = {int(number): place for place, (number, _) in enumerate(class_rows("coco_stuff.txt"))}
CLASSES = tuple(name for _, name in class_rows("coco_stuff.txt"))
UNUSED = set(range(182)) - set(TRAIN_IDS)
LABELS = labels_by_table(CLASSES, voc_palette(len(CLASSES), first=1), id_table(TRAIN_IDS, [*UNUSED, IGNORE]))
LAYOUT = (
    "The folder must hold images/train2017 and images/val2017, and the masks of stuffthingmaps_trainval2017.zip in "
    "annotations/train2017 and annotations/val2017 (or in stuffthingmaps/)."
)


def open_coco_stuff(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """COCO-Stuff 164k: images/{train2017,val2017} with their pixel maps in annotations/, 171 classes."""
    need_split("coco_stuff", split, FOLDERS)
    root = need_root("coco_stuff", root, LAYOUT)
    images, masks = (find_files(_place(root, split, parts), LAYOUT) for parts in (IMAGES, MASKS))
    return PairedImages("coco_stuff", split, pair_up(images, masks, LAYOUT), LABELS, size)


def _place(root: Path, split: str, parts: tuple[str, ...]) -> Path:
    """The first of the places that exists, else the first."""
    places = [root / part / FOLDERS[split] for part in parts]
    return next((place for place in places if place.is_dir()), places[0])
