"""The .mat files of the Semantic Boundaries Dataset, of which one array is read and nothing run.

A file (MATLAB's level 5 format) is a header of 128 bytes and elements, each a tag of type and length with its bytes.
The variable `GTcls` is a structure whose field `Segmentation` is uint8 HW of VOC's class ids. A parser for this alone,
since scipy's crashes the process on some damaged files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_core.data.image_file import MOST_PIXELS, read_bytes
from dsd_core.errors import DataError, shown

HEADER_BYTES = 128
MOST_BYTES = 2 * MOST_PIXELS
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
INT8, UINT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 2, 5, 6, 14, 15  # types of elements
STRUCTURE, BYTES = 2, 9  # classes of arrays


def read_segmentation(path: Path, field: str) -> np.ndarray:
    """Class ids, uint8 HW; raises DataError for a file that holds anything else, and for one that would unpack to
    more than 128 MB."""
    try:
        return _segmentation(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{shown(path)} cannot be read as a mask of SBD: {error}.",
            field=field,
            hint="It must be a whole .mat file of SBD's cls folder; copy it again or leave its image out.",
        ) from error


def _segmentation(content: bytes) -> np.ndarray:
    order = BYTE_ORDERS.get(content[HEADER_BYTES - 2 : HEADER_BYTES])
    if order is None:
        raise ValueError("it is no MATLAB file of level 5")
    for kind, packed in _elements(content[HEADER_BYTES:], order):
        inner = _elements(_inflated(packed), order) if kind == COMPRESSED else iter([(kind, packed)])
        for inner_kind, data in inner:
            if inner_kind == MATRIX and (array := _array(data, order)).name == b"GTcls":
                return _ids(_array(_member(array, b"Segmentation", order), order))
    raise ValueError("it has no variable GTcls")


@dataclass(frozen=True)
class _Array:
    kind: int
    shape: tuple[int, ...]
    name: bytes
    rest: list[tuple[int, bytes]]


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; up to four bytes lie in the tag itself. ValueError for one that is cut off."""
    start = 0
    while start < len(content):
        kind, count = struct.unpack_from(f"{order}II", content, start)
        first = start + 8
        if kind >> 16:
            kind, count, first = kind & 0xFFFF, kind >> 16, start + 4
        if first + count > len(content) or (first == start + 4 and count > 4):
            raise ValueError("it is cut off or damaged")
        yield kind, content[first : first + count]
        end = max(first + count, start + 8)
        start = end if kind == COMPRESSED else end + -end % 8


def _inflated(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(packed, MOST_BYTES)
    if not inflater.eof:
        raise ValueError(f"it is cut off, or unpacks to more than {MOST_BYTES // 1_000_000} MB")
    return content


def _array(content: bytes, order: str) -> _Array:
    """What stands before an array's values: class, shape and name."""
    parts = list(_elements(content, order))
    if [kind for kind, _ in parts[:3]] != [UINT32, INT32, INT8] or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise ValueError("it holds an array without class, shape and name")
    (flags, _), shape = struct.unpack(f"{order}II", parts[0][1]), parts[1][1]
    return _Array(flags & 0xFF, struct.unpack(f"{order}{len(shape) // 4}i", shape), parts[2][1], parts[3:])


def _member(array: _Array, name: bytes, order: str) -> bytes:
    """The value of a field of a structure that stands once: after the length of names and the names, a value each."""
    if array.kind != STRUCTURE or set(array.shape) != {1} or len(array.rest) < 2 or len(array.rest[0][1]) != 4:
        raise ValueError("GTcls is no structure")
    (length,), names = struct.unpack(f"{order}i", array.rest[0][1]), array.rest[1][1]
    if length < 1:
        raise ValueError("GTcls has no fields")
    fields = [names[start : start + length].rstrip(b"\0") for start in range(0, len(names), length)]
    if name not in fields or len(array.rest) != 2 + len(fields):
        raise ValueError(f"GTcls has no field {name.decode()}")
    return array.rest[2 + fields.index(name)][1]


def _ids(array: _Array) -> np.ndarray:
    kind, content = array.rest[0] if array.rest else (0, b"")
    height, width = array.shape if len(array.shape) == 2 else (0, 0)
    if (array.kind, kind) != (BYTES, UINT8) or min(height, width) < 1 or len(content) != height * width:
        raise ValueError("GTcls.Segmentation is no array of bytes with two dimensions")
    return np.frombuffer(content, dtype=np.uint8).reshape(height, width, order="F")
