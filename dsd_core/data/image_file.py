"""Image files that nobody vouches for: PNG and JPEG alone, bounded in pixels, decoded whole or refused by name.

What counts is a file's content, not the ending of its name. Images: grey is repeated, palettes are resolved,
transparency is dropped, CMYK is converted; more than 8 bits a channel and animations are refused; of the several
pictures of an MPO (a camera's JPEG) the first counts; the EXIF orientation is not applied, for masks follow the stored
pixels. Masks: PNG only, of ids in one channel (8 bits, or 16 where the dataset has such ids) or of colours.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dsd_core.errors import DataError, shown

FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 64_000_000
MOST_BYTES = 4 * MOST_PIXELS
IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")
ID_MODES = ("L", "P")
DEEP_MODES = (*ID_MODES, "I;16")
COLOUR_MODES = ("RGB", "L", "P")
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read_image(path: Path, field: str) -> np.ndarray:
    """The pixels as RGB, uint8 HW3; raises DataError naming the file."""
    with _opened(path, field) as image:
        if image.mode not in IMAGE_MODES or _deep(image):
            raise DataError(
                f"{shown(path)} has {_mode(image)}.",
                field=field,
                hint="Images must have 8 bits a channel: convert them.",
            )
        if image.format == "PNG" and getattr(image, "is_animated", False):
            raise DataError(f"{shown(path)} is an animation.", field=field, hint="Save one frame of it as an image.")
        return np.asarray(_without_palette(image).convert("RGB"))


def read_ids(path: Path, field: str, *, deep: bool = False) -> np.ndarray:
    """The ids of a single-channel mask, HW of uint8, or of uint16 where `deep` allows it; raises DataError naming the
    file."""
    modes = DEEP_MODES if deep else ID_MODES
    with _opened_mask(path, field) as image:
        if image.mode not in modes:
            raise DataError(
                f"{shown(path)} has {_mode(image)}, not a single channel of {'8 or 16' if deep else '8'} bits.",
                field=field,
                hint="A mask holds class ids: save it in mode L (grey) or P (palette), not as colours.",
            )
        return np.asarray(image)


def read_colours(path: Path, field: str) -> np.ndarray:
    """The colours of a mask as numbers red * 65536 + green * 256 + blue, uint32 HW; raises DataError naming the
    file."""
    with _opened_mask(path, field) as image:
        if image.mode not in COLOUR_MODES or _deep(image):
            raise DataError(
                f"{shown(path)} has {_mode(image)}, not colours of 8 bits a channel.",
                field=field,
                hint="Save the mask in mode RGB, without transparency.",
            )
        rgb_HW3 = np.asarray(_without_palette(image).convert("RGB"))
    packed_HW = rgb_HW3[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed_HW <<= 8
        packed_HW |= rgb_HW3[..., channel]
    return packed_HW


def image_size(path: Path, field: str) -> tuple[int, int]:
    """(height, width) from the file's header."""
    with _opened(path, field, header=True) as image:
        return image.height, image.width


def read_bytes(path: Path, most: int) -> bytes:
    """The file's content; ValueError where it is more than `most` bytes."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most // 1_000_000} MB")
        return file.read()


@contextmanager
def _opened_mask(path: Path, field: str) -> Iterator[Image.Image]:
    with _opened(path, field) as image:
        if image.format != "PNG":
            raise DataError(
                f"{shown(path)} is a JPEG, whose compression changes class ids.",
                field=field,
                hint="Save masks as PNG, from the source and not from this file.",
            )
        yield image


@contextmanager
def _opened(path: Path, field: str, *, header: bool = False) -> Iterator[Image.Image]:
    """The image. Pillow asks a file for as many bytes as a chunk claims to have, and a file makes room for them before
    it reads; content in memory gives what there is."""
    try:
        source = path if header else io.BytesIO(read_bytes(path, MOST_BYTES))
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except TOO_LARGE as error:
        raise DataError(
            f"{shown(path)} has more than {MOST_PIXELS // 1_000_000} million pixels.",
            field=field,
            hint="Shrink it or leave it out.",
        ) from error
    except UNDECODABLE as error:
        raise DataError(
            f"{shown(path)} cannot be decoded: {_reason(error)}.",
            field=field,
            hint="It must be a whole PNG or JPEG file; copy it again or leave it and its partner out.",
        ) from error


def _reason(error: Exception) -> str:
    """The error without the path, which the message names already."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return "it is no PNG or JPEG" if isinstance(error, UnidentifiedImageError) else said.partition("\n")[0].rstrip(".")


def _without_palette(image: Image.Image) -> Image.Image:
    """Palettes with transparency go through RGBA, which Pillow asks for."""
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def _deep(image: Image.Image) -> bool:
    """Pillow reads 16-bit colours as RGB of 8; its decoder's arguments still say what the file holds."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _mode(image: Image.Image) -> str:
    return "16 bits a channel" if _deep(image) else f"mode {image.mode}"
