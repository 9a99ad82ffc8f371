"""Pascal VOC 2012 segmentation, 21 classes with the background, alone and enlarged by SBD.

`voc2012` reads `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation` (Everingham et al., IJCV 2015). The root
is `VOC2012`, the `VOCdevkit` around it, or the folder around that.

`voc2012_aug` trains on the 10582 images that the field calls trainaug: those of the Semantic Boundaries Dataset
(Hariharan et al., ICCV 2011) and of VOC's train without those of VOC's val. They come from a `SegmentationClassAug`
folder with a list `trainaug.txt`, or from SBD as it unpacks (`img/`, `cls/*.mat`, `train.txt`, `val.txt`) below the
same root, where VOC's own masks go before SBD's. SBD alone has its own val. Whatever the lists say, no image of val is
in train.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsd_core.data.class_list import voc_palette
from dsd_core.data.dataset import IGNORE, Size
from dsd_core.data.labels import FIELD, Labels, id_table, read_label, translate
from dsd_core.data.pairs import (
    IMAGES,
    Pair,
    PairedImages,
    base_names,
    find_files,
    need_root,
    need_split,
    pair_up,
    without_ending,
)
from dsd_core.data.sbd import read_segmentation
from dsd_core.errors import DataError, NoSplitError, shown

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
TABLE = id_table({number: number for number in range(len(CLASSES))}, [IGNORE])
LAYOUT = (
    "The folder must hold VOCdevkit/VOC2012 (or be one of the two) with JPEGImages, SegmentationClass and "
    "ImageSets/Segmentation/train.txt and val.txt, as VOCtrainval_11-May-2012.tar unpacks."
)
AUG_LAYOUT = (
    f"{LAYOUT} For voc2012_aug also SegmentationClassAug and ImageSets/Segmentation/trainaug.txt (or train_aug.txt), "
    "or, with the folder that holds both as root, benchmark_RELEASE/dataset (or dataset) with img, cls, train.txt and "
    "val.txt, as SBD's benchmark.tgz unpacks."
)
VOC_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")
SBD_PLACES = ("benchmark_RELEASE/dataset", "dataset", ".")
AUG_LISTS = ("trainaug.txt", "train_aug.txt")


def open_voc2012(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """Pascal VOC 2012: JPEGImages, SegmentationClass, ImageSets/Segmentation; 21 classes, 255 is ignored."""
    need_split("voc2012", split)
    voc = _find(need_root("voc2012", root, LAYOUT), VOC_PLACES, "JPEGImages")
    if voc is None:
        raise DataError(f"There is no JPEGImages folder of VOC 2012 in {shown(root)}.", field=FIELD, hint=LAYOUT)
    return _open_voc("voc2012", voc, split, size)


def open_voc2012_aug(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """Pascal VOC 2012 with SBD's train images (10582): SegmentationClassAug with trainaug.txt, or SBD's .mat files."""
    need_split("voc2012_aug", split, ("train", "val"))
    root = need_root("voc2012_aug", root, AUG_LAYOUT)
    voc, sbd = _find(root, VOC_PLACES, "JPEGImages"), _find(root, SBD_PLACES, "cls")
    if voc is not None and split == "val":
        return _open_voc("voc2012_aug", voc, "val", size)
    if voc is not None and (voc / "SegmentationClassAug").is_dir():
        names = _without(_aug_names(voc), _listed(voc, "val"))
        pairs = _pairs(voc, "JPEGImages", "SegmentationClassAug", names)
    elif sbd is not None:
        pairs = _sbd_pairs(sbd, voc, split)
    else:
        raise DataError(f"There is no SegmentationClassAug and no SBD in {shown(root)}.", field=FIELD, hint=AUG_LAYOUT)
    return PairedImages("voc2012_aug", split, pairs, LABELS, size)


def read_voc_label(path: Path) -> np.ndarray:
    """The train ids of a palette PNG of VOC or of a .mat file of SBD, uint8 HW; raises DataError."""
    if path.suffix == ".mat":
        return translate(read_segmentation(path, FIELD), TABLE, path)
    return read_label(path, TABLE)


LABELS = Labels(CLASSES, voc_palette(len(CLASSES)), read_voc_label)


def _open_voc(dataset: str, voc: Path, split: str, size: Size | None) -> PairedImages:
    images = find_files(voc / "JPEGImages", LAYOUT)
    masks = find_files(voc / "SegmentationClass", LAYOUT) if split != "test" else None
    return PairedImages(dataset, split, pair_up(images, masks, LAYOUT, _listed(voc, split)), LABELS, size)


def _find(root: Path, places: tuple[str, ...], inside: str) -> Path | None:
    return next((root / place for place in places if (root / place / inside).is_dir()), None)


def _listed(voc: Path, split: str) -> list[str]:
    return _names(voc / "ImageSets" / "Segmentation" / f"{split}.txt")


def _names(listing: Path) -> list[str]:
    """Names without endings, as lists of VOC and SBD have them; those of others come with folders and endings."""
    if not listing.is_file():
        raise NoSplitError(f"There is no list {shown(listing)}.", field=FIELD, hint=AUG_LAYOUT)
    return [without_ending(name) or name for name in base_names(listing)]


def _aug_names(voc: Path) -> list[str]:
    lists = [voc / "ImageSets" / "Segmentation" / name for name in AUG_LISTS]
    return _names(next((path for path in lists if path.is_file()), lists[0]))


def _without(names: list[str], held_out: list[str]) -> list[str]:
    out = set(held_out)
    return [name for name in names if name not in out]


def _sbd_pairs(sbd: Path, voc: Path | None, split: str) -> list[Pair]:
    names, held_out = _names(sbd / f"{split}.txt"), _names(sbd / "val.txt")
    if split == "val":
        return _pairs(sbd, "img", "cls", names)
    if voc is None:
        return _pairs(sbd, "img", "cls", _without(names, held_out))
    drawn = _without(_listed(voc, "train"), _listed(voc, "val"))
    others = _without(sorted({*names, *held_out}), [*drawn, *_listed(voc, "val")])
    return _pairs(voc, "JPEGImages", "SegmentationClass", drawn) + _pairs(sbd, "img", "cls", others)


def _pairs(root: Path, images: str, masks: str, names: list[str]) -> list[Pair]:
    endings = (".mat",) if masks == "cls" else IMAGES
    return pair_up(
        find_files(root / images, AUG_LAYOUT), find_files(root / masks, AUG_LAYOUT, endings), AUG_LAYOUT, names
    )
