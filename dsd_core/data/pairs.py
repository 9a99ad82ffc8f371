"""Image files and mask files in pairs, as every dataset on disk has them.

An image and its mask have the same name without the ending, byte for byte: case counts, and so does the Unicode form
of a letter. Two images, or two masks, that differ in their ending alone are refused, for nothing says which is meant.
Names that begin with a dot are passed over.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path, PurePosixPath

import numpy as np

from dsd_core.cores import usable_cores
from dsd_core.data.dataset import IGNORE, SPLITS, Dataset, Item, Size, resized
from dsd_core.data.image_file import image_size, read_image
from dsd_core.data.labels import FIELD, Labels
from dsd_core.errors import LISTED_NAMES, DataError, NoSplitError, listed, shown, unknown

IMAGES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """An item's files; `name` is what messages and the fingerprint call it."""

    name: str
    image: Path
    mask: Path | None


class PairedImages(Dataset):
    """Images with masks of the same size, or with none at all; opened by a function per layout.

    `kind` enters the fingerprint: the dataset's name, and whatever else decides what the files mean.
    """

    def __init__(self, kind: str, split: str, pairs: Sequence[Pair], labels: Labels, size: Size | None) -> None:
        super().__init__(split, [pair.name for pair in pairs], size)
        self.classes = labels.classes
        self.palette = labels.palette
        self.labelled = all(pair.mask is not None for pair in pairs)
        self._kind = kind
        self._pairs = pairs
        self._read_label = labels.read
        self._digests: list[tuple[bytes, ...] | None] = [None] * len(pairs)

    def image_path(self, index: int) -> Path:
        return self._pairs[index].image

    def mask_path(self, index: int) -> Path | None:
        return self._pairs[index].mask

    def read(self, index: int) -> Item:
        pair = self._pairs[index]
        image_HW3 = read_image(pair.image, FIELD)
        if pair.mask is None:
            return resized(image_HW3, np.full(image_HW3.shape[:2], IGNORE, dtype=np.uint8), self._size)
        label_HW = self._read_label(pair.mask)
        if image_HW3.shape[:2] != label_HW.shape:
            raise DataError(
                f"{shown(pair.mask)} is {_text(label_HW.shape)}, its image {_text(image_HW3.shape)}.",
                field=FIELD,
                hint="A mask must have its image's size.",
            )
        return resized(image_HW3, label_HW, self._size)

    def digests(self, index: int) -> tuple[bytes, ...]:
        known = self._digests[index]
        if known is None:
            pair = self._pairs[index]
            known = tuple(_sha256(path) for path in (pair.image, pair.mask) if path is not None)
            self._digests[index] = known
        return known

    def fingerprint(self) -> str:
        names = "\n".join(self.names).encode(errors="surrogateescape")
        total = hashlib.sha256(f"{self._kind} {self.split}\n".encode() + names)
        with ThreadPoolExecutor(usable_cores()) as pool:
            for digests in pool.map(self.digests, range(len(self))):
                total.update(b"".join(digests))
        return total.hexdigest()

    def _own_size(self, index: int) -> Size:
        return image_size(self._pairs[index].image, FIELD)


# --- finding the files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Files below a folder: their names relative to it, by what pairs them."""

    folder: Path
    names: dict[str, str]

    def path(self, key: str) -> Path:
        return self.folder / self.names[key]


def need_split(dataset: str, split: str, splits: Iterable[str] = SPLITS) -> None:
    """Raises SpecError for a split the dataset never has."""
    if split not in splits:
        raise unknown(f"split of {dataset}", split, splits)


def need_root(dataset: str, root: Path | None, layout: str) -> Path:
    """The root, which must be a folder; raises DataError with the layout."""
    if root is None:
        raise DataError(f"Dataset {dataset!r} needs a root folder.", field=FIELD, hint=layout)
    if not root.is_dir():
        raise DataError(f"There is no folder {shown(root)}.", field=FIELD, hint=layout)
    return root


def find_files(folder: Path, layout: str, endings: tuple[str, ...] = IMAGES) -> Files:
    """All files below `folder` with one of the endings, by their name without it.

    Raises NoSplitError where there is no such folder, DataError where it cannot be listed and for two files that differ
    in their ending alone.
    """
    if not folder.is_dir():
        raise NoSplitError(f"There is no folder {shown(folder)}.", field=FIELD, hint=layout)
    found: dict[str, str] = {}
    for name in sorted(_walk(folder, layout)):
        key = without_ending(name, endings)
        if key is None:
            continue
        if key in found:
            raise DataError(
                f"{shown(folder)} holds both {shown(found[key])} and {shown(name)}.",
                field=FIELD,
                hint="Names without their ending must differ: rename one of the two.",
            )
        found[key] = name
    return Files(folder, found)


def without_ending(name: str, endings: tuple[str, ...] = IMAGES) -> str | None:
    """The name without the first of the endings it has, in whatever case; None where it has none of them."""
    for ending in endings:
        if name.lower().endswith(ending.lower()):
            return name[: -len(ending)]
    return None


def pair_up(images: Files, masks: Files | None, layout: str, chosen: Sequence[str] | None = None) -> list[Pair]:
    """Each image with its mask, in the order of `chosen` (names, with or without ending) or of all names.

    `masks` is None where there are none at all. Raises DataError that names what is missing.
    """
    wanted = dict(sorted(images.names.items(), key=itemgetter(1)))
    if chosen is not None:
        wanted = {without_ending(name) or name: name for name in chosen}
    if not wanted:
        raise DataError(
            f"{shown(images.folder)} holds no image of this split; endings are {', '.join(IMAGES)}.",
            field=FIELD,
            hint=layout,
        )
    _refuse_missing(images, "image", wanted, layout)
    if masks is None:
        return [Pair(images.names[key], images.path(key), None) for key in wanted]
    _refuse_missing(masks, "annotation", {key: images.names[key] for key in wanted}, layout)
    return [Pair(images.names[key], images.path(key), masks.path(key)) for key in wanted]


def _walk(folder: Path, layout: str) -> Iterable[str]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"{shown(error.filename)} cannot be listed: {error.strerror}.", field=FIELD, hint=layout
        ) from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = PurePosixPath(Path(place).relative_to(folder))
        yield from (str(below / name) for name in files if not name.startswith("."))


def _refuse_missing(files: Files, kind: str, wanted: Mapping[str, str], layout: str) -> None:
    missing = [key for key in wanted if key not in files.names]
    if not missing:
        return
    alike = {_folded(key): name for key, name in files.names.items()}
    near = [alike[_folded(key)] for key in missing[:LISTED_NAMES] if _folded(key) in alike]
    said = f" There are {listed(near)}, which differ in case or in the Unicode form of a letter." if near else ""
    raise DataError(
        f"{shown(files.folder)} lacks the {kind} of {len(missing)} of {len(wanted)} names: "
        f"{listed([wanted[key] for key in missing])}.{said}",
        field=FIELD,
        hint=layout,
        files=[wanted[key] for key in missing],
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _sha256(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(
            f"{shown(path)} cannot be read: {error.strerror}.", field=FIELD, hint="Copy it again or leave it out."
        ) from error


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


# --- lists of names ---------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank, without the spaces around them; raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown(path)} cannot be read: {error}.", field=FIELD, hint="It must be text, one image a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def base_names(listing: Path) -> list[str]:
    """The base name of each line's first word; folders in it, which are those of the list's author, do not count."""
    return [PurePosixPath(line.split()[0]).name for line in read_lines(listing)]


def refuse_escape(name: str, folder: Path, listing: Path) -> None:
    """Raises DataError for a name of a list that is no path below `folder`: absolute, or with `..`."""
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
        raise DataError(
            f"{shown(listing)} names {shown(name)!r}, which is no path below {shown(folder)}.",
            field=FIELD,
            hint="Write paths relative to it; absolute ones and `..` are refused.",
        )


def refuse_link_out(path: Path | None, folder: Path, listing: Path) -> None:
    """Raises DataError for a file of a list that is a link to somewhere outside `folder`."""
    if path is not None and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{shown(listing)} names {shown(path)}, a link that leads out of {shown(folder)}.",
            field=FIELD,
            hint="Copy the file into the folder.",
        )
