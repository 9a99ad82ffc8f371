"""A network that teaches and never learns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsd_core.models.taps import Taps, run_to_last


class Frozen(nn.Module):
    """The module in eval mode for good: `.train()` does not reach it, it takes no gradients and records no graph."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def run_to_taps(self, images_N3HW: Tensor, taps: Iterable[Taps]) -> None:
        """A forward pass as far as the last of `taps`, which hold their features afterwards; the logits at the size of
        the images are not made. A compiled network runs to its end."""
        if self.compiled:
            self(images_N3HW)
        else:
            run_to_last(lambda: self(images_N3HW), taps)

    @property
    def compiled(self) -> bool:
        """Whether torch.compile runs any of it."""
        return any(module._compiled_call_impl is not None for module in self.modules())
