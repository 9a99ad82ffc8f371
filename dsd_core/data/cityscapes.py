"""Cityscapes, fine annotations, 19 classes (Cordts et al., CVPR 2016).

`ROOT/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` and `ROOT/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`, as the
archives unpack. Ids outside the 19 classes of the benchmark are ignored. The masks of the test split hold no class.
"""

from __future__ import annotations

from pathlib import Path

from dsd_core.data.dataset import IGNORE, Size
from dsd_core.data.labels import Labels, id_table, labels_by_table
from dsd_core.data.pairs import Files, PairedImages, find_files, need_root, need_split, pair_up

# (id in labelIds files, name, colour); the place in this list is the train id.
TABLE = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(name for _, name, _ in TABLE)
PALETTE = [colour for _, _, colour in TABLE]
LABEL_IDS = {number: place for place, (number, _, _) in enumerate(TABLE)}
OTHER_IDS = {*range(34), IGNORE} - set(LABEL_IDS)
ENDINGS = {
    "_gtFine_labelIds.png": labels_by_table(CLASSES, PALETTE, id_table(LABEL_IDS, OTHER_IDS)),
    "_gtFine_labelTrainIds.png": labels_by_table(
        CLASSES, PALETTE, id_table({place: place for place in range(len(TABLE))}, [IGNORE])
    ),
}
"""Of the masks a split has; train ids are read where there are no label ids."""
LAYOUT = (
    "The folder must hold leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png and gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png, "
    "as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack."
)


def open_cityscapes(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """Cityscapes: leftImg8bit/ and gtFine/ as they unpack, labelIds to the 19 classes of the benchmark."""
    need_split("cityscapes", split)
    root = need_root("cityscapes", root, LAYOUT)
    images = find_files(root / "leftImg8bit" / split, LAYOUT, ("_leftImg8bit.png",))
    masks, labels = _masks(root / "gtFine" / split)
    return PairedImages("cityscapes", split, pair_up(images, masks, LAYOUT), labels, size)


def _masks(folder: Path) -> tuple[Files, Labels]:
    found = [(find_files(folder, LAYOUT, (ending,)), labels) for ending, labels in ENDINGS.items()]
    return next((pair for pair in found if pair[0].names), found[0])
