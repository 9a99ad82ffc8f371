"""1x1 convolutions go by oneDNN on one thread, with the same values, and come back as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.profiler import profile

from dsd_core.models import build
from dsd_core.models.pointwise import pointwise_by_onednn


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def passed(network: nn.Module, images: torch.Tensor) -> tuple[set[str], torch.Tensor, list[torch.Tensor]]:
    """The kernels of a pass and its backward, the logits, and the gradients."""
    with profile() as seen:
        logits = network(images)
        gradients = torch.autograd.grad(logits.square().mean(), list(network.parameters()))
    return {event.key for event in seen.key_averages()}, logits.detach(), list(gradients)


def dilations(network: nn.Module) -> dict[str, object]:
    return {name: module.dilation for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.usefixtures("one_thread")
def test_inside_with_no_convolution_takes_the_slow_way_and_values_and_gradients_stay_the_same() -> None:
    torch.manual_seed(0)
    network, images = build("fpn:resnet18", 3).eval(), torch.rand(2, 3, 64, 96)
    before = dilations(network)
    slow, logits, gradients = passed(network, images)
    with pointwise_by_onednn(network):
        assert dilations(network) != before
        fast, same_logits, same_gradients = passed(network, images)
    assert dilations(network) == before
    assert "aten::_slow_conv2d_forward" in slow, "torch would take it"
    assert not any("slow_conv" in kernel for kernel in fast)
    torch.testing.assert_close(same_logits, logits, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(same_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_with_several_threads_torch_chooses() -> None:
    network, before = nn.Conv2d(3, 4, 1), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pointwise_by_onednn(network):
            assert network.dilation == (1, 1)
    finally:
        torch.set_num_threads(before)
