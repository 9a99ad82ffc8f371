"""A dataset of one's own as a list of its files: `manifest.csv` or `manifest.jsonl`, with `classes.yaml` beside it.

Each row has `image`, `mask` (empty, or left out, where there are no labels) and `split` (train, val or test). Paths are
relative to the manifest and stay below its folder. Either all rows of a split have a mask or none has.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_core.data.classes_file import NAME, read_classes
from dsd_core.data.dataset import SPLITS, Size
from dsd_core.data.labels import FIELD
from dsd_core.data.pairs import Pair, PairedImages, need_split, refuse_escape, refuse_link_out
from dsd_core.errors import DataError, NoSplitError, listed, shown

NAMES = ("manifest.csv", "manifest.jsonl")
COLUMNS = {"image", "mask", "split"}
LAYOUT = (
    f"The root is a folder with {' or '.join(NAMES)}, or such a file, and {NAME} lies beside it. Columns are image, "
    "mask and split (train, val or test); paths are relative to the manifest."
)


def open_manifest(root: Path | None, split: str, size: Size | None = None) -> PairedImages:
    """A list of your own files: manifest.csv or manifest.jsonl with image, mask, split, and classes.yaml beside it."""
    need_split("manifest", split)
    manifest = _find(root)
    labels = read_classes(manifest.parent / NAME)
    rows = [row for row in _rows(manifest) if row["split"] == split]
    if not rows:
        raise NoSplitError(f"{shown(manifest)} has no row of the split {split!r}.", field=FIELD, hint=LAYOUT)
    pairs = [_pair(manifest, row) for row in rows]
    _refuse_wrong_files(manifest, pairs)
    return PairedImages(f"manifest {labels.digest}", split, pairs, labels, size)


def _find(root: Path | None) -> Path:
    places = [] if root is None else [root, *(root / name for name in NAMES)]
    for place in places:
        if place.is_file() and place.suffix in (".csv", ".jsonl"):
            return place
    raise DataError(
        f"There is no manifest {shown(root)}." if root else "Dataset 'manifest' needs a root.", field=FIELD, hint=LAYOUT
    )


def _rows(manifest: Path) -> Iterator[dict[str, str]]:
    """The rows with `image`, `mask` and `split`, all text; raises DataError that names the line."""
    read = _csv_rows if manifest.suffix == ".csv" else _json_rows
    try:
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            for number, row in read(file):
                yield _checked(manifest, number, row)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{shown(manifest)} cannot be read: {error}.", field=FIELD, hint=LAYOUT) from error


def _csv_rows(file: Any) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file, strict=True)
    return ((reader.line_num, row) for row in reader)


def _json_rows(file: Any) -> Iterator[tuple[int, Any]]:
    return ((number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip())


def _checked(manifest: Path, number: int, row: Any) -> dict[str, str]:
    row = {"mask": "", **{key: value or "" for key, value in row.items()}} if isinstance(row, dict) else {}
    if set(row) != COLUMNS or not all(isinstance(value, str) for value in row.values()) or not row["image"]:
        raise DataError(f"Line {number} of {shown(manifest)} is not image, mask and split.", field=FIELD, hint=LAYOUT)
    if row["split"] not in SPLITS:
        raise DataError(
            f"Line {number} of {shown(manifest)} has the split {shown(row['split'])!r}.", field=FIELD, hint=LAYOUT
        )
    return row


def _pair(manifest: Path, row: dict[str, str]) -> Pair:
    root = manifest.parent
    for name in filter(None, (row["image"], row["mask"])):
        refuse_escape(name, root, manifest)
        refuse_link_out(root / name, root, manifest)
    return Pair(row["image"], root / row["image"], root / row["mask"] if row["mask"] else None)


def _refuse_wrong_files(manifest: Path, pairs: list[Pair]) -> None:
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    files = [path for pair in pairs for path in (pair.image, pair.mask) if path is not None]
    bare = [pair.name for pair in pairs if pair.mask is None]
    wrong = {
        "lists twice in one split": twice,
        "lists files that are not there": [str(path) for path in files if not path.is_file()],
        "gives masks to a part of the split only; without are": bare if len(bare) < len(pairs) else [],
    }
    for what, names in wrong.items():
        if names:
            raise DataError(f"{shown(manifest)} {what}: {listed(names)}.", field=FIELD, hint=LAYOUT, files=names)
