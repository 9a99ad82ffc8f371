"""How a network looks at an image when it is scored: whole or through a window that slides, at one scale or several,
mirrored or not.

`predictor` puts the three together: the window is innermost, so it slides over every scaled and mirrored image.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_core.parts import Size
from dsd_core.spec import Evaluation

LogitsOf = Callable[[Tensor], Tensor]
"""uint8 images N3HW to logits NKHW of the same height and width."""


def predictor(logits_of: LogitsOf, options: Evaluation) -> LogitsOf:
    """`logits_of`, looking at images as `options` say.

    A single look gives the network's own logits. Several give the logarithm of their mean class probabilities, which
    has the same softmax and argmax as that mean.
    """
    if options.window is not None and options.stride is not None:
        logits_of = sliding(logits_of, options.window, options.stride)
    looks = list(product(options.scales, (False, True) if options.flip else (False,)))
    if looks == [(1.0, False)]:
        return logits_of

    def log_mean(images_N3HW: Tensor) -> Tensor:
        views = (_look(logits_of, images_N3HW, scale, mirrored).softmax(dim=1) for scale, mirrored in looks)
        mean_NKHW = sum(views, start=torch.zeros((), device=images_N3HW.device)) / len(looks)
        return mean_NKHW.clamp_min(torch.finfo(mean_NKHW.dtype).tiny).log()

    return log_mean


def sliding(logits_of: LogitsOf, window: Size, stride: Size) -> LogitsOf:
    """`logits_of` on windows of (height, width); where windows overlap, the mean of their logits.

    The last window of a row or column is moved back to end with the image, and a side of the image that is shorter than
    the window's is seen whole.
    """

    def logits(images_N3HW: Tensor) -> Tensor:
        height, width = images_N3HW.shape[-2:]
        sums_NKHW, counts_HW = None, torch.zeros(height, width, device=images_N3HW.device)
        for top, left in product(starts(height, window[0], stride[0]), starts(width, window[1], stride[1])):
            place = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            part = logits_of(images_N3HW[place])
            if sums_NKHW is None:
                sums_NKHW = part.new_zeros(*part.shape[:2], height, width)
            sums_NKHW[place] += part
            counts_HW[place] += 1
        assert sums_NKHW is not None
        return sums_NKHW / counts_HW

    return logits


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along a side of `length` begin: every `stride`, and the last so that it ends with the side."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _look(logits_of: LogitsOf, images_N3HW: Tensor, scale: float, mirrored: bool) -> Tensor:
    """Logits at the images' own size, of the images scaled and mirrored."""
    size = images_N3HW.shape[-2:]
    seen = scaled(images_N3HW, scale)
    logits_NKHW = logits_of(seen.flip(-1)).flip(-1) if mirrored else logits_of(seen)
    if logits_NKHW.shape[-2:] == size:
        return logits_NKHW
    return F.interpolate(logits_NKHW, size, mode="bilinear", align_corners=False)


def scaled(images_N3HW: Tensor, scale: float) -> Tensor:
    """8-bit images again, bilinear, averaged where they shrink; their sides are rounded, and at least one pixel."""
    if scale == 1.0:
        return images_N3HW
    size = [max(1, round(side * scale)) for side in images_N3HW.shape[-2:]]
    resized = F.interpolate(images_N3HW.float(), size, mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
