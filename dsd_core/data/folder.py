"""A dataset of one's own as a folder: `images/`, `masks/`, `classes.yaml`.

Which split an image belongs to is said in one of three ways, the first that is there: by folders (`images/train`,
`images/val`, perhaps `images/test`, with `masks/train` and so on), by lists at the root (`train.txt`, `val.txt`,
perhaps `test.txt`, an image below `images/` each line), or by a rule: the images whose name without ending has a
SHA-256 divisible by 10 are val (one in ten), the others train. A split without a masks folder has no labels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsd_core.data.classes_file import NAME, read_classes
from dsd_core.data.dataset import SPLITS, Size
from dsd_core.data.labels import FIELD
from dsd_core.data.pairs import (
    Files,
    Pair,
    PairedImages,
    find_files,
    need_root,
    need_split,
    pair_up,
    read_lines,
    refuse_escape,
    refuse_link_out,
)
from dsd_core.errors import DataError, NoSplitError, shown

LAYOUT = (
    "The folder must hold images/, masks/ with a PNG of the same name for each image (or no masks/, for images without "
    f"labels) and {NAME}; splits are folders in both (images/train, images/val, masks/train, masks/val), or lists "
    "train.txt and val.txt, or every tenth image by name is val."
)


def open_folder(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """A folder of your own: images/, masks/ (ids or colours; none for images without labels), classes.yaml."""
    need_split("folder", split)
    root = need_root("folder", root, LAYOUT)
    labels = read_classes(root / NAME)
    if any((root / "images" / name).is_dir() for name in SPLITS):
        masks = _find_masks(root / "masks", split)
        pairs = pair_up(find_files(root / "images" / split, LAYOUT), masks, LAYOUT)
    elif any((root / f"{name}.txt").is_file() for name in SPLITS):
        pairs = _listed_pairs(root, split)
    else:
        images = find_files(root / "images", LAYOUT)
        pairs = pair_up(images, _find_masks(root / "masks"), LAYOUT, _by_rule(images, split))
    return PairedImages(f"folder {labels.digest}", split, pairs, labels, size)


def _find_masks(masks: Path, split: str = ".") -> Files | None:
    """The masks of a split; None where it has no labels."""
    if split != "." and masks.is_dir() and not any((masks / name).is_dir() for name in SPLITS):
        raise DataError(f"images/ is divided into splits, {shown(masks)} is not.", field=FIELD, hint=LAYOUT)
    return find_files(masks / split, LAYOUT) if (masks / split).is_dir() else None


def _listed_pairs(root: Path, split: str) -> list[Pair]:
    listing, images, masks = root / f"{split}.txt", root / "images", root / "masks"
    if not listing.is_file():
        raise NoSplitError(f"There is no list {shown(listing)}.", field=FIELD, hint=LAYOUT)
    names = read_lines(listing)
    for name in names:
        refuse_escape(name, images, listing)
    pairs = pair_up(find_files(images, LAYOUT), _find_masks(masks), LAYOUT, names)
    for pair in pairs:
        refuse_link_out(pair.image, images, listing)
        refuse_link_out(pair.mask, masks, listing)
    return pairs


def _by_rule(images: Files, split: str) -> list[str]:
    if split == "test":
        raise NoSplitError(f"{shown(images.folder)} is not divided, so it has no test split.", field=FIELD, hint=LAYOUT)
    return [name for key, name in sorted(images.names.items()) if _is_held_out(key) == (split == "val")]


def _is_held_out(key: str) -> bool:
    return int(hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest(), 16) % 10 == 0
