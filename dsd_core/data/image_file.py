"""Image files that nobody vouches for: PNG and JPEG alone, bounded in pixels, decoded whole or refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_core.errors import DataError

FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 64_000_000
IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK")
MASK_MODES = ("L", "P")
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read_image(path: Path, field: str) -> np.ndarray:
    """The pixels as RGB, uint8 HW3; raises DataError naming the file."""
    with _opened(path, field) as image:
        if image.mode not in IMAGE_MODES:
            raise DataError(f"{path} has mode {image.mode}.", field=field, hint="Images must have 8 bits a channel.")
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path, field: str) -> np.ndarray:
    """The ids of a single-channel mask, uint8 HW; raises DataError naming the file."""
    with _opened(path, field) as image:
        if image.mode not in MASK_MODES:
            raise DataError(
                f"{path} has mode {image.mode}, not a single channel of 8 bits.",
                field=field,
                hint="A mask holds class ids: save it in mode L (grey) or P (palette), not as colours.",
            )
        return np.asarray(image)


def image_size(path: Path, field: str) -> tuple[int, int]:
    """(height, width) from the file's header."""
    with _opened(path, field) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path, field: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except TOO_LARGE as error:
        raise DataError(
            f"{path} has more than {MOST_PIXELS // 1_000_000} million pixels.",
            field=field,
            hint="Shrink it or leave it out.",
        ) from error
    except UNDECODABLE as error:
        raise DataError(
            f"{path} cannot be decoded: {error}.",
            field=field,
            hint="It must be a whole PNG or JPEG file; copy it again or leave it and its partner out.",
        ) from error
