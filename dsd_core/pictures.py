"""Pictures for people: class ids as colours, and the strip image | label | teacher | student | difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

IGNORE = 255
Palette = Sequence[tuple[int, int, int]]
HEADING_PX = 16


def colour(mask_HW: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids to RGB, uint8 HW3; ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[mask_HW.astype(np.uint8)]


def difference(mask_HW: np.ndarray, label_HW: np.ndarray) -> np.ndarray:
    """Where prediction and label agree (dark grey), differ (red) and nothing is known (black), uint8 HW3."""
    picture = np.full((*mask_HW.shape, 3), 60, dtype=np.uint8)
    picture[mask_HW != label_HW] = (220, 40, 40)
    picture[label_HW == IGNORE] = 0
    return picture


def overlay(image_HW3: np.ndarray, mask_HW: np.ndarray, palette: Palette, share: float = 0.5) -> np.ndarray:
    """The image with the class colours mixed in by `share`, uint8 HW3."""
    return (image_HW3 * (1 - share) + colour(mask_HW, palette) * share).astype(np.uint8)


def draw_comparison(
    path: Path,
    image_HW3: np.ndarray,
    label_HW: np.ndarray,
    masks: dict[str, np.ndarray],
    palette: Palette,
    least_height: int = 160,
) -> None:
    """Write a PNG strip: image, label, each mask under its name, and where the last mask differs from the label."""
    last = list(masks.values())[-1]
    columns = {"image": image_HW3, "label": colour(label_HW, palette)}
    columns |= {name: colour(mask, palette) for name, mask in masks.items()}
    columns["difference"] = difference(last, label_HW)
    factor = -(-least_height // label_HW.shape[0])
    height, width = label_HW.shape[0] * factor, label_HW.shape[1] * factor
    strip = Image.new("RGB", ((width + 4) * len(columns) - 4, height + HEADING_PX), "white")
    draw = ImageDraw.Draw(strip)
    for index, (name, pixels) in enumerate(columns.items()):
        left = index * (width + 4)
        draw.text((left + 3, 2), name, fill="black")
        strip.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, HEADING_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path)
