"""ENet is the published network: its weights load, and maxima go back to where they were found."""

from pathlib import Path

import torch
import torch.nn.functional as F

from dsd_core.models import build, load_weights
from dsd_core.models.enet import put_back


def test_published_camvid_weights_load_and_the_size_is_the_papers(shared_weights: Path) -> None:
    network = build("enet", 12)
    load_weights(network, shared_weights / "camvid11_enet_2018.safetensors", field="/teacher/weights")
    assert sum(p.numel() for p in network.parameters()) == 359_780


def test_values_go_back_as_torchs_unpooling_puts_them() -> None:
    torch.manual_seed(0)
    _, where = F.max_pool2d(torch.rand(2, 3, 8, 12), 3, stride=2, padding=1, return_indices=True)
    values = torch.rand(2, 3, 4, 6)
    torch.testing.assert_close(put_back(values, where), F.max_unpool2d(values, where, 2, output_size=(8, 12)))


def test_gradients_reach_the_first_layer_through_the_unpooling() -> None:
    network = build("enet", 4)
    logits = network(torch.rand(2, 3, 32, 48))
    assert logits.shape == (2, 4, 32, 48)
    logits.square().sum().backward()
    assert network.initial_block.main_branch.weight.grad.abs().sum() > 0
