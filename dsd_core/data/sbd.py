"""The .mat files of the Semantic Boundaries Dataset, read as data: nothing in them is run.

A file is `GTcls`, a structure whose field `Segmentation` is a uint8 HW of VOC's class ids.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from dsd_core.data.image_file import MOST_PIXELS
from dsd_core.errors import DataError, shown

HEADER_BYTES, TAG_BYTES = 128, 8
COMPRESSED = 15  # miCOMPRESSED, the type of an element that is a zlib stream
MOST_BYTES = 2 * MOST_PIXELS


def read_segmentation(path: Path, field: str) -> np.ndarray:
    """Class ids, uint8 HW; raises DataError for a file that holds anything else, and for one that would unpack to
    more than 128 MB."""
    from scipy.io import loadmat  # takes a third of a second, which other datasets need not spend

    try:
        content = loadmat(io.BytesIO(_unpacked(path.read_bytes())), variable_names=["GTcls"])
        segmentation_HW = content["GTcls"][0, 0]["Segmentation"]
    except Exception as error:  # scipy's parser answers damaged files with errors of many kinds
        raise DataError(
            f"{shown(path)} cannot be read as a mask of SBD: {type(error).__name__}: {error}.",
            field=field,
            hint="It must be a whole .mat file of SBD's cls folder; copy it again or leave its image out.",
        ) from error
    if segmentation_HW.dtype != np.uint8 or segmentation_HW.ndim != 2 or not segmentation_HW.size:
        raise DataError(
            f"{shown(path)} holds {segmentation_HW.dtype} of shape {segmentation_HW.shape}, not uint8 HW.",
            field=field,
            hint="GTcls.Segmentation must hold class ids.",
        )
    return segmentation_HW


def _unpacked(content: bytes) -> bytes:
    """The file with its compressed elements inflated, so that scipy meets none; ValueError beyond MOST_BYTES."""
    parts, start, room = [content[:HEADER_BYTES]], HEADER_BYTES, MOST_BYTES
    while start < len(content):
        kind, count = struct.unpack_from("<II", content, start)
        element = content[start : start + TAG_BYTES + count]
        if kind == COMPRESSED:
            inflater = zlib.decompressobj()
            element = inflater.decompress(element[TAG_BYTES:], room + 1)
        room -= len(element)
        if room < 0:
            raise ValueError(f"it would unpack to more than {MOST_BYTES // 1_000_000} MB")
        parts.append(element)
        start += TAG_BYTES + count
    return b"".join(parts)
