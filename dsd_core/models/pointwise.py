"""Which of torch's kernels compute the 1x1 convolutions of a network on one CPU thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def pointwise_by_onednn(network: nn.Module) -> Iterator[None]:
    """As `route_pointwise`, inside `with` alone."""
    routed = route_pointwise(network)
    try:
        yield
    finally:
        for conv in routed:
            conv.dilation = (1, 1)


def route_pointwise(network: nn.Module) -> list[nn.Conv2d]:
    """Have oneDNN compute the 1x1 convolutions, where torch would not; returns those that were altered.

    On one thread torch takes a plain matrix product for them, which takes twice the time on large maps, forward and
    backward. It takes oneDNN for what is dilated, and a kernel of one value is the same however far it is spread.
    """
    if torch.get_num_threads() > 1 or not torch.backends.mkldnn.is_available():
        return []
    routed = [module for module in network.modules() if isinstance(module, nn.Conv2d) and _is_pointwise(module)]
    for conv in routed:
        conv.dilation = (2, 2)
    return routed


def _is_pointwise(conv: nn.Conv2d) -> bool:
    ones = conv.kernel_size == conv.stride == conv.dilation == (1, 1)
    return ones and conv.weight.device.type == "cpu" and conv.padding in ((0, 0), "valid")
