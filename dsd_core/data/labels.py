"""What the numbers in mask files mean: one table from a file's ids to train ids.

A table has 256 entries for masks of 8 bits, 65536 where ids need 16, and 2^24 for masks of colours, where a colour is
the id red * 65536 + green * 256 + blue. Its entries are train ids, 255 for what is ignored, and -1 for what must not
occur.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dsd_core.data.dataset import IGNORE, Palette
from dsd_core.data.image_file import read_colours, read_ids
from dsd_core.errors import DataError, listed, shown

FIELD = "/dataset/root"
BYTE, WORD, COLOUR = 1 << 8, 1 << 16, 1 << 24
REFUSED = -1


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset and how its mask files say them."""

    classes: tuple[str, ...]
    palette: Palette
    read: Callable[[Path], np.ndarray]
    """A mask file's train ids, uint8 HW, 255 for what is ignored; raises DataError."""
    digest: str = ""
    """SHA-256 (hex) of what masks mean, where the dataset's name does not say it."""


def labels_by_table(classes: Iterable[str], palette: Palette, table: np.ndarray) -> Labels:
    """Labels of mask files whose numbers `table` translates."""
    names = tuple(classes)
    digest = hashlib.sha256(repr(names).encode() + table.tobytes()).hexdigest()
    return Labels(names, palette, partial(read_label, table=table), digest)


def id_table(train_ids: Mapping[int, int], ignored: Iterable[int], entries: int = BYTE) -> np.ndarray:
    """The int16 table of `entries` that maps `train_ids` and ignores `ignored`; all else is refused."""
    table = np.full(entries, REFUSED, dtype=np.int16)
    table[list(ignored)] = IGNORE
    table[list(train_ids)] = list(train_ids.values())
    return table


def read_label(path: Path, table: np.ndarray) -> np.ndarray:
    """A PNG mask's train ids, uint8 HW; raises DataError naming the file."""
    if len(table) == COLOUR:
        return translate(read_colours(path, FIELD), table, path)
    return translate(read_ids(path, FIELD, deep=len(table) == WORD), table, path)


def translate(ids_HW: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """The table's train ids for ids, uint8 HW; raises DataError naming the file, the ids and those allowed."""
    label_HW = table[ids_HW]
    if label_HW.min() < 0:
        strange = np.unique(ids_HW[label_HW < 0]).tolist()
        raise DataError(
            f"{shown(path)} holds the {_kind(table)} {listed([_text(table, number) for number in strange])}; "
            f"allowed are {_allowed(table)}.",
            field=FIELD,
            hint=f"Correct the mask, or say what these {_kind(table)} mean where the dataset lets you.",
        )
    return label_HW.astype(np.uint8)


def _kind(table: np.ndarray) -> str:
    return "colours" if len(table) == COLOUR else "ids"


def _text(table: np.ndarray, number: int) -> str:
    if len(table) == COLOUR:
        return f"({number >> 16}, {number >> 8 & 255}, {number & 255})"
    return str(number)


def _allowed(table: np.ndarray) -> str:
    """The allowed ids as ranges, the allowed colours one by one."""
    allowed = np.flatnonzero(table >= 0)
    if len(table) == COLOUR:
        return listed([_text(table, number) for number in allowed.tolist()])
    runs = np.split(allowed, np.flatnonzero(np.diff(allowed) > 1) + 1)
    return listed([f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs])
