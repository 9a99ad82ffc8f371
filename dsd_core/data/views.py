"""Training views: a scaled, cropped, flipped, recoloured part of an image, drawn by counter and not by a generator.

The window that will fill the crop is cut from the 8-bit image first and only that is resized, so a view costs by its
own size and not by the image's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dsd_core.data.dataset import IGNORE, Size
from dsd_core.spec import Augment

Key = tuple[int, int, int]
VIEWS, ORDER = 0, 1
"""The last counter word, which keeps draws for different purposes apart."""


def draw_view(image_HW3: np.ndarray, label_HW: np.ndarray, augment: Augment, key: Key) -> tuple[Tensor, Tensor]:
    """A view as (image 3HW uint8, label HW int64); `key` is (seed, epoch, index).

    The same key gives the same bytes in any process. What lies outside the image is labelled 255 and has about
    the image's mean colour.
    """
    return show_view(image_HW3, label_HW, place_view(label_HW.shape, augment, key))


def show_view(image_HW3: np.ndarray, label_HW: np.ndarray, view: View) -> tuple[Tensor, Tensor]:
    """The view of this image, as `draw_view`."""
    inside, placed = view.inside, view.placed
    image = _resized(torch.from_numpy(image_HW3[inside].copy()).permute(2, 0, 1), placed, InterpolationMode.BILINEAR)
    label = _resized(torch.from_numpy(label_HW[inside].copy())[None], placed, InterpolationMode.NEAREST_EXACT)
    if view.flipped:
        image, label = F.horizontal_flip(image), F.horizontal_flip(label)
    return _on_canvas(_recoloured(image, *view.colour), label[0], placed, view.crop, image_HW3)


@dataclass(frozen=True)
class View:
    """Which part of an image fills which part of a crop, and how."""

    crop: Size
    inside: tuple[slice, slice]
    """Rows and columns of the image that are seen."""
    placed: tuple[slice, slice]
    """Rows and columns of the crop that they fill."""
    flipped: bool
    """Left and right are exchanged, within `placed`."""
    factor: float
    """Pixels of the crop a pixel of the image, in rows and columns up to rounding."""
    colour: tuple[float, float, float]
    """Factors of brightness, contrast and saturation."""
    key: Key = (0, 0, 0)
    """What it was drawn from."""


def place_view(size: Size, augment: Augment, key: Key) -> View:
    """The view that `key` stands for, of an image of `size`; nothing is read."""
    seed, epoch, index = key
    draws = uniforms(seed, epoch, index, VIEWS, 7)
    crop = augment.crop or size
    factor = augment.scale[0] * (augment.scale[1] / augment.scale[0]) ** draws[0]
    inside, placed = _visible(_choose_window(size, crop, factor, draws[1:3]), size, crop)
    flipped = bool(draws[3] < augment.flip)
    if flipped:
        placed = (placed[0], slice(crop[1] - placed[1].stop, crop[1] - placed[1].start))
    brightness, contrast, saturation = (
        1 + spread * (2 * draw - 1)
        for spread, draw in zip((augment.brightness, augment.contrast, augment.saturation), draws[4:], strict=True)
    )
    return View(crop, inside, placed, flipped, float(factor), (brightness, contrast, saturation), key)


def uniforms(seed: int, epoch: int, index: int, purpose: int, count: int) -> np.ndarray:
    """`count` doubles in [0, 1) that depend on the arguments alone (Philox, Salmon et al. 2011)."""
    counter = np.array([0, 0, index, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=counter)).random(
        count
    )


@dataclass(frozen=True)
class _Window:
    """A rectangle of the source image in whole pixels; it may reach beyond the image."""

    top: int
    left: int
    height: int
    width: int


def _choose_window(size: Size, crop: Size, factor: float, draws: np.ndarray) -> _Window:
    height, width = (max(1, round(edge / factor)) for edge in crop)
    return _Window(_offset(size[0] - height, draws[0]), _offset(size[1] - width, draws[1]), height, width)


def _offset(slack: int, draw: float) -> int:
    """A whole number from 0 to `slack`, both included; negative where the window is larger than the image."""
    steps = math.floor(draw * (abs(slack) + 1))
    return steps if slack >= 0 else -steps


def _visible(window: _Window, size: Size, crop: Size) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the image inside the window, and where they come to lie in the crop."""
    spans = [
        _span(window.top, window.height, size[0], crop[0]),
        _span(window.left, window.width, size[1], crop[1]),
    ]
    return (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])


def _span(start: int, length: int, image_edge: int, crop_edge: int) -> tuple[slice, slice]:
    first, last = max(0, start), min(image_edge, start + length)
    ratio = crop_edge / length
    low = min(round((first - start) * ratio), crop_edge - 1)
    return slice(first, last), slice(low, max(low + 1, round((last - start) * ratio)))


def _resized(part_CHW: Tensor, placed: tuple[slice, slice], interpolation: InterpolationMode) -> Tensor:
    size = [span.stop - span.start for span in placed]
    return F.resize(part_CHW, size, interpolation=interpolation, antialias=True)


def _recoloured(image_3HW: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Brightness, contrast and saturation in one affine step, each as torchvision defines it.

    torchvision's own contrast takes a float32 mean, whose last bits depend on the number of threads; this one is exact,
    so that a loader process and the trainer make the same bytes.
    """
    if brightness == contrast == saturation == 1:
        return image_3HW
    grey = F.rgb_to_grayscale(image_3HW)
    mean = grey.sum(dtype=torch.int64).item() / grey.numel()
    gain = brightness * contrast
    pixels = image_3HW * (gain * saturation)
    pixels += grey * (gain * (1 - saturation)) + brightness * (1 - contrast) * mean
    return pixels.clamp_(0, 255).to(torch.uint8)


def _on_canvas(
    image_3HW: Tensor, label_HW: Tensor, placed: tuple[slice, slice], crop: Size, source_HW3: np.ndarray
) -> tuple[Tensor, Tensor]:
    if tuple(label_HW.shape) == tuple(crop):
        return image_3HW, label_HW.long()
    mean = torch.from_numpy(source_HW3[::4, ::4].mean(axis=(0, 1)).round().astype(np.uint8))
    image = mean.expand(*crop, 3).contiguous().permute(2, 0, 1)
    label = torch.full(crop, IGNORE, dtype=torch.uint8)
    image[:, placed[0], placed[1]] = image_3HW
    label[placed] = label_HW
    return image, label.long()
