"""What a network costs: parameters, operations, and time per image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from dsd_core.models.networks import build_meta, stride
from dsd_core.network_spec import NetworkSpec

BUDGET_S = 2.0


def count_params(network: nn.Module) -> int:
    """Number of learned values; running statistics do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def deployed_params(module: nn.Module) -> int:
    """`count_params` of a network, or of what wraps one, without the auxiliary head, which inference leaves out."""
    declared = [getattr(part, "tap_names", None) for part in module.modules()]
    parts = zip(module.modules(), declared, strict=True)
    heads = [part.get_submodule(names.auxiliary) for part, names in parts if names is not None and names.auxiliary]
    return count_params(module) - sum(map(count_params, heads))


def count_flops(network: NetworkSpec | str, classes: int, size: tuple[int, int]) -> int:
    """Operations of a forward pass on one image of (height, width), as deployed: without an auxiliary head.

    The size grows to the stride.
    """
    return flops_of(build_meta(network, classes), padded(size, stride(network)))


def flops_of(module: nn.Module, size: tuple[int, int]) -> int:
    """Operations of a forward pass of a module on the meta device, two per multiply-add; nothing is computed.

    Convolutions and matrix products count; normalisation, activation and resizing do not.
    """
    with counting() as counter, torch.no_grad():
        module(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())


def counting() -> FlopCounterMode:
    """Counts the operations of convolutions and matrix products inside `with`, two per multiply-add, forward and
    backward."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward})


def _conv_backward(
    grad_output: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **out: Any,
) -> int:
    """Each gradient takes as many as the forward pass; torch's own count takes grouped convolutions for dense ones."""
    return sum(output_mask[:2]) * conv_flop_count(list(x), list(weight), list(grad_output), transposed)


def padded(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The size grown to multiples of the stride."""
    height, width = (-(-side // stride) * stride for side in size)
    return height, width


def latency_ms(segmenter: nn.Module, size: tuple[int, int], threads: int) -> float:
    """Median milliseconds of a forward pass on one image of (height, width), CPU; at least 5 passes and 2 seconds."""
    before = torch.get_num_threads()
    image = torch.zeros(1, 3, *size, dtype=torch.uint8)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            segmenter(image)
            return statistics.median(_timed_passes(segmenter, image))
    finally:
        torch.set_num_threads(before)


def _timed_passes(segmenter: nn.Module, image: torch.Tensor) -> list[float]:
    times_ms: list[float] = []
    end = time.perf_counter() + BUDGET_S
    while len(times_ms) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        segmenter(image)
        times_ms.append((time.perf_counter() - start) * 1000)
    return times_ms
