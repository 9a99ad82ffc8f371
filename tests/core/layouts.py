"""Tiny datasets in the layouts that the public archives unpack to, with the files around them that do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from dsd_core.data.class_list import voc_palette

Size = tuple[int, int]
SIZE = (18, 24)


def save_image(path: Path, size: Size = SIZE, seed: int = 0) -> Path:
    """An RGB image of noise, PNG or JPEG by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def save_ids(path: Path, ids: list[int], size: Size = SIZE, *, colours: bool = False, dtype: type = np.uint8) -> Path:
    """A PNG mask that shows each of the ids; with `colours` as VOC has it, with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(mask_of(ids, size).astype(dtype))
    if colours:
        mask.putpalette([value for colour in voc_palette(256) for value in colour])
    mask.save(path)
    return path


def mask_of(ids: list[int], size: Size = SIZE) -> np.ndarray:
    """The ids one after the other, over and over, HW."""
    return np.resize(np.array(ids), size)


def cityscapes(root: Path, suffix: str = "labelIds", ids: list[int] | None = None) -> Path:
    """leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip: cities, and four files an annotation."""
    frames = {"train": ["aachen_000000_000019", "bochum_000000_000313"], "val": ["frankfurt_000000_000294"]}
    for split, names in {**frames, "test": ["berlin_000000_000019"]}.items():
        for seed, name in enumerate(names):
            city = name.partition("_")[0]
            save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed=seed)
            annotations = root / "gtFine" / split / city
            shown = [0] if split == "test" else ids or list(range(34))
            save_ids(annotations / f"{name}_gtFine_{suffix}.png", shown)
            save_image(annotations / f"{name}_gtFine_color.png")
            save_ids(annotations / f"{name}_gtFine_instanceIds.png", [26001, 7], dtype=np.uint16)
            (annotations / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    """ADEChallengeData2016.zip."""
    for folder, part in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            size = (SIZE[0] + number, SIZE[1])
            name = f"ADE_{part}_{number:08d}"
            save_image(root / "images" / folder / f"{name}.jpg", size)
            save_ids(root / "annotations" / folder / f"{name}.png", list(range(151)), size)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return root


VOC_TRAIN, VOC_VAL = ["2007_000032", "2007_000039"], ["2007_000033", "2007_000042"]
SBD_TRAIN, SBD_VAL = ["2008_000002", "2007_000033", "2007_000032"], ["2008_000003", "2007_000042"]


def voc(root: Path) -> Path:
    """VOCtrainval_11-May-2012.tar: VOCdevkit/VOC2012 below `root`; images differ in size."""
    place = root / "VOCdevkit" / "VOC2012"
    for number, name in enumerate([*VOC_TRAIN, *VOC_VAL]):
        size = (SIZE[0], SIZE[1] + number % 2)
        save_image(place / "JPEGImages" / f"{name}.jpg", size, seed=number)
        save_ids(place / "SegmentationClass" / f"{name}.png", [*range(21), 255], size, colours=True)
    save_image(place / "JPEGImages" / "2012_004331.jpg")  # of another task: no mask, in no list
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", VOC_TRAIN + VOC_VAL)):
        save_list(place / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return place


def voc_aug(root: Path, listing: str = "trainaug.txt") -> Path:
    """VOC with SegmentationClassAug and its list."""
    place = voc(root)
    save_image(place / "JPEGImages" / "2008_000002.jpg")
    for name in [*VOC_TRAIN, "2008_000002"]:
        with Image.open(place / "JPEGImages" / f"{name}.jpg") as image:
            save_ids(place / "SegmentationClassAug" / f"{name}.png", [0, 5], (image.height, image.width))
    save_list(place / "ImageSets" / "Segmentation" / listing, [*VOC_TRAIN, "2008_000002", VOC_VAL[0]])
    return place


def sbd(root: Path) -> Path:
    """benchmark.tgz: benchmark_RELEASE/dataset below `root`."""
    place = root / "benchmark_RELEASE" / "dataset"
    for number, name in enumerate([*SBD_TRAIN, *SBD_VAL]):
        save_image(place / "img" / f"{name}.jpg", seed=number)
        save_mat(place / "cls" / f"{name}.mat", mask_of([number, 20]).astype(np.uint8))
    save_list(place / "train.txt", SBD_TRAIN)
    save_list(place / "val.txt", SBD_VAL)
    return place


def save_mat(path: Path, segmentation_HW: np.ndarray, *, packed: bool = True) -> Path:
    """A file of SBD's cls folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = np.unique(segmentation_HW)[:, None]
    content = {
        "Boundaries": np.empty((20, 1), object),
        "Segmentation": segmentation_HW,
        "CategoriesPresent": categories,
    }
    content["Boundaries"][:] = 0
    savemat(path, {"GTcls": content}, do_compression=packed)
    return path


def save_list(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


def coco_stuff(root: Path, masks: str = "annotations", images: str = "images") -> Path:
    """train2017.zip and val2017.zip in images/, stuffthingmaps_trainval2017.zip in annotations/."""
    for folder in ("train2017", "val2017"):
        for number in (9, 25):
            size = (SIZE[0], SIZE[1] + number)
            save_image(root / images / folder / f"{number:012d}.jpg", size)
            save_ids(root / masks / folder / f"{number:012d}.png", [*range(182), 255], size)
    return root


def folder(root: Path, classes: str = "classes: [road, car, sky]\n", **splits: list[str]) -> Path:
    """A dataset of one's own, its splits as folders; ids 0..2 and 255."""
    for split, names in (splits or {"train": ["a", "b", "c"], "val": ["d"]}).items():
        for seed, name in enumerate(names):
            save_image(root / "images" / split / f"{name}.png", seed=len(split) * 100 + seed)
            save_ids(root / "masks" / split / f"{name}.png", [0, 1, 2, 255])
    (root / "classes.yaml").write_text(classes)
    return root
