"""Lists of classes that come with the package, and colours for classes that have none of their own."""

from __future__ import annotations

import colorsys
from importlib.resources import files

from dsd_core.data.dataset import Palette


def class_rows(name: str) -> list[list[str]]:
    """The rows of a list of this package: `numbers` and the class's name, which may have spaces, last."""
    lines = files("dsd_core.data").joinpath(name).read_text(encoding="utf-8").splitlines()
    numbers = sum(word.isdigit() for word in lines[0].split())
    return [line.split(maxsplit=numbers) for line in lines]


def voc_palette(count: int, first: int = 0) -> Palette:
    """The colours of VOC's masks from index `first`: bits 0, 3, 6, … of the index are the high bits of red, 1, 4, 7,
    … of green, 2, 5, 8, … of blue (VOC devkit, VOClabelcolormap)."""
    return [_voc_colour(index) for index in range(first, first + count)]


def rainbow(count: int) -> Palette:
    """Distinct colours for classes without a palette of their own; neighbours lie far apart on the wheel."""
    wheel = (colorsys.hsv_to_rgb(index * 0.618 % 1, 0.65, 0.95) for index in range(count))
    return [(int(255 * red), int(255 * green), int(255 * blue)) for red, green, blue in wheel]


def _voc_colour(index: int) -> tuple[int, int, int]:
    red, green, blue = (
        sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
    return red, green, blue
