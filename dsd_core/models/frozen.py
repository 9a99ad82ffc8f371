"""A network that teaches and never learns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsd_core.models.folding import fold_norms
from dsd_core.models.pointwise import route_pointwise
from dsd_core.models.same_padding import pad_in_kernels
from dsd_core.models.taps import Taps, run_to_last

SMALL = 64  # pixels, the side of an image that every network can take


class Frozen(nn.Module):
    """The module in eval mode for good: `.train()` does not reach it, it takes no gradients and records no graph."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self._tapped: tuple[str, ...] | None = None  # as it is settled
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The network inside, where taps are resolved."""
        inner = getattr(self.module, "network", None)
        return inner if isinstance(inner, nn.Module) else self.module

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def rest(self) -> None:
        """Leave memory: names and shapes stay, values go, until `wake`."""
        if callable(release := getattr(self.network, "release", None)):
            release()
        self.module.to("meta")

    def wake(self, module: nn.Module) -> None:
        """Work again, with this module in place of the one that rested."""
        self.module = module.requires_grad_(False).eval()
        if self._tapped is not None:
            self.settle(self._tapped)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def settle(self, tapped: Iterable[str]) -> None:
        """Make passes cheaper for good, with the same outputs up to rounding: convolutions take in the norms after
        them, but for those among the taps, on a CPU depthwise ones pad by themselves, and on one CPU thread oneDNN
        computes the 1x1 ones."""
        self._tapped = tuple(tapped)
        if any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            image_N3HW = torch.zeros(1, 3, SMALL, SMALL, dtype=torch.uint8, device=next(self.parameters()).device)
            fold_norms(self, lambda: self(image_N3HW), Taps(self.network, self._tapped).modules)
        pad_in_kernels(self)
        route_pointwise(self)

    def run_to_taps(self, images_N3HW: Tensor, taps: Iterable[Taps]) -> None:
        """A forward pass as far as the last of `taps`, which hold their features afterwards; the logits at the size of
        the images are not made. A compiled network runs to its end."""
        if self.compiled:
            self(images_N3HW)
        else:
            run_to_last(lambda: self(images_N3HW), taps)

    @property
    def compiled(self) -> bool:
        """Whether torch.compile runs it."""
        return any(module._compiled_call_impl is not None for module in (self, self.module, self.network))
