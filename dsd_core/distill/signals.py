"""What losses take of a teacher, in forms small enough to be kept: energy maps, logits, correlation matrices.

A loss names its signals (`LossSpec.signals`) and asks for their values (`Seen.told`); whether they come from a teacher
that has just seen the batch or from a store is not its concern. Values are tuples of tensors, images first. Importing
this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dsd_core.distill.lazy import ops, torch

if TYPE_CHECKING:
    from torch import Tensor

    from dsd_core.distill.loss import Layers, Outlook

Size = tuple[int, int]
Values = tuple["Tensor", ...]
ValidOn = Callable[["Tensor"], "Tensor"]
"""Which positions count, bool N x H x W, on the grid of a tensor."""
Kept = Literal["float", "scaled", "logits", "ids"]
"""`float`: as it is. `scaled`: up to a positive factor an image, which no loss sees. `logits`: of which the largest may
be enough. `ids`: whole numbers up to 255, which are never averaged."""


@dataclass(frozen=True)
class Signal:
    """A value by its definition; equal definitions are one signal, and `repr` tells them apart."""

    @property
    def base(self) -> Signal:
        """The maps it is derived from, which can be sampled; by default itself."""
        return self

    @property
    def kept(self) -> Kept:
        return "float"

    @property
    def at_image(self) -> bool:
        """Whether it needs logits at the size of the image, so the whole teacher."""
        return False

    def of(self, outlook: Outlook, size: Size) -> Values:
        """The maps NCHW of a base signal, from what the teacher made of images of this (height, width)."""
        raise TypeError(f"{self!r} is derived from {self.base!r}.")

    def grid(self, crop: Size, size: Size, image: Size) -> Size:
        """The grid a map would have had for a crop, of a base signal whose map of an `image` has this `size`."""
        raise TypeError(f"{self!r} is derived from {self.base!r}.")

    def derive(self, maps: Values, valid_on: ValidOn) -> Values:
        """The value, from the maps of its base and the pixels that count."""
        return maps


@dataclass(frozen=True)
class Energy(Signal):
    """Energy maps N1HW of a kind of layers, shallow to deep: on the grid of the image divided by `stride`, or each on
    its own."""

    layers: Layers
    stride: int | None = None

    @property
    def kept(self) -> Kept:
        return "scaled"

    def of(self, outlook: Outlook, size: Size) -> Values:
        maps = tuple(outlook.energies(self.layers))
        return maps if self.stride is None else tuple(ops.resize(energy, grid_at(size, self.stride)) for energy in maps)

    def grid(self, crop: Size, size: Size, image: Size) -> Size:
        return _in_proportion(crop, size, image) if self.stride is None else grid_at(crop, self.stride)


@dataclass(frozen=True)
class Logits(Signal):
    """Logits NKHW of the head before they are up-sampled, or at the size of the image; averaged over cells of
    `stride` pixels where there is one."""

    at: Literal["image", "head"]
    stride: int | None = None

    @property
    def kept(self) -> Kept:
        return "logits"

    @property
    def at_image(self) -> bool:
        return self.at == "image"

    def of(self, outlook: Outlook, size: Size) -> Values:
        logits = (outlook.logits if self.at_image else outlook.inside("logits")[0]).detach()
        return (ops.resize(ops.widen(logits), grid_at(size, self.stride)) if self.stride else logits,)

    def grid(self, crop: Size, size: Size, image: Size) -> Size:
        return grid_at(crop, self.stride) if self.stride else _in_proportion(crop, size, image)


@dataclass(frozen=True)
class Correlation(Signal):
    """The matrix N x K x K of CSD, with the options of `category_correlation`."""

    logits: Logits
    tau: float
    softmax: Literal["category", "spatial"]
    normalize: bool
    pool: int | None

    @property
    def base(self) -> Signal:
        return self.logits

    @property
    def at_image(self) -> bool:
        return self.logits.at_image

    def derive(self, maps: Values, valid_on: ValidOn) -> Values:
        from dsd_core.distill.losses.double_similarity import category_correlation

        options = {"tau": self.tau, "softmax": self.softmax, "normalize": self.normalize, "pool": self.pool}
        return (category_correlation(maps[0], valid=valid_on(maps[0]), **options),)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Presence(Signal):
    """N x K, 1 for each class the teacher finds most probable somewhere in the image."""

    @property
    def base(self) -> Signal:
        return Logits("image")

    @property
    def kept(self) -> Kept:
        return "ids"

    @property
    def at_image(self) -> bool:
        return True

    def derive(self, maps: Values, valid_on: ValidOn) -> Values:
        (logits,) = maps
        found = torch.zeros(logits.shape[:2], dtype=torch.uint8, device=logits.device)
        return (found.scatter_(1, logits.argmax(dim=1).flatten(1), 1),)


@dataclass(frozen=True)
class Labelling(Signal):
    """The class N1HW the teacher finds most probable at each pixel; 255 where it is less sure than `confidence`."""

    confidence: float

    @property
    def kept(self) -> Kept:
        return "ids"

    @property
    def at_image(self) -> bool:
        return True

    def of(self, outlook: Outlook, size: Size) -> Values:
        probability, labels = ops.widen(outlook.logits.detach()).softmax(dim=1).max(dim=1, keepdim=True)
        return (labels.where(probability >= self.confidence, 255).to(torch.uint8),)

    def grid(self, crop: Size, size: Size, image: Size) -> Size:
        return crop


def grid_at(size: Size, stride: int) -> Size:
    """Height and width divided by the stride, at least 1."""
    return max(size[0] // stride, 1), max(size[1] // stride, 1)


def _in_proportion(crop: Size, size: Size, image: Size) -> Size:
    """The grid that covers a crop as densely as `size` covers the image."""
    return max(1, round(crop[0] * size[0] / image[0])), max(1, round(crop[1] * size[1] / image[1]))
