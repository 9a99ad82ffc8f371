"""A teacher at work: images in, what the losses take of it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from dsd_core.distill.loss import Feature, Layers, Outlook
from dsd_core.distill.ops import Grid, grid_of
from dsd_core.distill.signals import Signal, Values
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps

Names = dict[Layers, tuple[str, ...]]
"""Module names of each kind of layers, shallow to deep."""


class Teaching:
    """A frozen teacher with hooks at `layers`. It runs no further than it has to."""

    def __init__(self, teacher: Frozen, layers: Names) -> None:
        self.teacher = teacher
        self._hooks = ExitStack()
        self._taps = tapped(self._hooks, teacher.network, layers, "/teacher/taps")

    def close(self) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def features(self, images_N3HW: Tensor) -> Outlook:
        """Whole features and logits of uint8 images."""
        with torch.no_grad():
            logits_NKHW = self.teacher(images_N3HW)
        return outlook_of(logits_NKHW, self._taps, self.teacher.module, images_N3HW)

    def signals(
        self, images_N3HW: Tensor, bases: Sequence[Signal], *, at_once: int | None = None
    ) -> dict[Signal, Values]:
        """The maps of these base signals for uint8 images.

        With `at_once` they go so many at a time, and where fewer are left over the last of them goes again: on a CPU,
        whose kernels for other numbers of images may be others, an image's bits then do not depend on which others it
        comes with.
        """
        if at_once is not None:
            parts = [self._maps(_filled_up(part, at_once), bases) for part in images_N3HW.split(at_once)]
        else:
            parts = [self._maps(images_N3HW, bases)]
        maps = {base: tuple(map(torch.cat, zip(*(part[base] for part in parts), strict=True))) for base in bases}
        return {base: tuple(values[: len(images_N3HW)] for values in several) for base, several in maps.items()}

    def _maps(self, images_N3HW: Tensor, bases: Sequence[Signal]) -> dict[Signal, Values]:
        height, width = images_N3HW.shape[-2:]
        with torch.no_grad():
            if any(base.at_image for base in bases):
                outlook = self.features(images_N3HW)
            else:
                self.teacher.run_to_taps(images_N3HW, self._taps.values())
                outlook = outlook_of(None, self._taps, self.teacher.module, images_N3HW)
            with torch.autocast(images_N3HW.device.type, enabled=False):
                return {base: base.of(outlook, (height, width)) for base in bases}


def _filled_up(images_N3HW: Tensor, count: int) -> Tensor:
    """So many images, the last of those given as often as it takes."""
    missing = count - len(images_N3HW)
    return torch.cat([images_N3HW, images_N3HW[-1:].expand(missing, -1, -1, -1)]) if missing else images_N3HW


def tapped(hooks: ExitStack, network: nn.Module, layers: Names, field: str) -> dict[str, Taps]:
    """Taps at these layers, for as long as `hooks` is open."""
    return {kind: hooks.enter_context(Taps(network, names, field=field)) for kind, names in sorted(layers.items())}


def outlook_of(logits_NKHW: Tensor | None, taps: dict[str, Taps], segmenter: nn.Module, images_N3HW: Tensor) -> Outlook:
    """What a network made of these images: the features captured, without outputs that are no class."""
    assert isinstance(segmenter, Segmenter)
    height, width = images_N3HW.shape[-2:]
    padded = segmenter.padded(height, width)
    whole = {kind: tap.features() for kind, tap in taps.items()}
    if "logits" in whole and whole["logits"][0].shape[1] > segmenter.classes:
        whole["logits"] = [logits[:, : segmenter.classes] for logits in whole["logits"]]
    features = {
        kind: [_feature(captured, (height, width), padded) for captured in several] for kind, several in whole.items()
    }
    return Outlook(logits_NKHW, features)


def _feature(captured_NCHW: Tensor, size: Grid, padded: Grid) -> Feature:
    """A feature of an image of this size that was padded to another."""
    grid = grid_of(captured_NCHW)
    rows, columns = (max(1, round(side * image / whole)) for side, image, whole in zip(grid, size, padded, strict=True))
    return Feature(captured_NCHW, (rows, columns), at_image=grid == padded)
