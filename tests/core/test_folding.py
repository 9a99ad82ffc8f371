"""A teacher's convolutions do its batch normalisation, and every other module returns what it did."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dsd_core.models import build
from dsd_core.models.cost import count_params
from dsd_core.models.folding import FoldedNorm, fold_norms

NETWORKS = [
    "espnet",
    "enet",
    "fpn:resnet18",
    "fpn:timm-tf_efficientnet_lite0",
    "unet:tu-mobilenetv3_small_050",
    "lraspp_mobilenet_v3_large",
]


def at_rest(name: str) -> nn.Module:
    """The network with running statistics and weights of its norms that do something."""
    torch.manual_seed(1)
    network = build(name, 4).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.bias.data):
            tensor.normal_(0, 0.1)
        for tensor in (norm.running_var, norm.weight.data):
            tensor.uniform_(0.8, 1.2)
    return network


def outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each module returned last, where that is a tensor."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> object:
        return lambda module, inputs, output: found.update({name: output} if isinstance(output, Tensor) else {})

    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules()]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_all_but_the_convolutions_before_a_norm_return_what_they_did(name: str) -> None:
    network, images = at_rest(name), torch.rand(2, 3, 64, 96)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    before, parameters = outputs(copy.deepcopy(network), images), count_params(network)
    folded = fold_norms(network, lambda: network(images[:1]))
    after = outputs(network, images)
    assert 0 < len(folded) <= norms and count_params(network) == parameters
    taken_in = {name for name, module in network.named_modules() if module in folded}
    changed = [before[name] for name in taken_in]
    compared = [name for name in set(before) & set(after) if not any(before[name] is output for output in changed)]
    assert len(compared) > 20 and "" in compared
    for module in compared:
        torch.testing.assert_close(after[module], before[module], rtol=1e-3, atol=1e-4)


def test_a_convolution_that_is_looked_at_keeps_what_it_returns() -> None:
    network, images = at_rest("fpn:resnet18"), torch.rand(2, 3, 64, 96)
    before = outputs(copy.deepcopy(network), images)
    kept = network.encoder.layer1[0].conv1
    fold_norms(network, lambda: network(images[:1]), keep=[kept])
    after = outputs(network, images)
    assert torch.allclose(after["encoder.layer1.0.conv1"], before["encoder.layer1.0.conv1"], rtol=1e-3, atol=1e-4)
    assert isinstance(network.encoder.layer1[0].bn1, nn.BatchNorm2d)
    assert isinstance(network.encoder.layer1[0].bn2, FoldedNorm)


class Shared(nn.Module):
    """Norms whose convolution something else reads too, is in what a tapped module returns, or runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.listed, self.second = Listed(), nn.BatchNorm2d(3)
        self.again, self.third = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(x) + x
        x = self.second(self.listed(x)[0])
        return self.third(self.again(self.again(x)))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


def test_a_norm_stays_where_another_than_it_sees_the_convolution() -> None:
    network, image = Shared().eval(), torch.rand(1, 3, 8, 8)
    assert fold_norms(network, lambda: network(image), keep=[network.listed]) == []
    assert fold_norms(network, lambda: network(image)) == [network.listed.conv]
    assert isinstance(network.second, FoldedNorm)


def test_a_norm_that_trains_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert fold_norms(network, lambda: network(torch.rand(2, 3, 4, 4))) == []


class Activated(nn.Module):
    """timm's norms with activations, of which two are one module."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(BatchNormAct2d(3, act_layer=nn.ReLU6, inplace=False) for _ in range(3))
        self.norms[2].act = self.norms[1].act

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
        return x


def test_an_activation_of_one_norm_writes_over_its_convolution() -> None:
    network, image = Activated().eval(), torch.rand(1, 3, 8, 8) * 9
    expected = network(image)
    assert len(fold_norms(network, lambda: network(image))) == 3
    after = outputs(network, image)
    torch.testing.assert_close(after[""], expected)
    written_over = [after[f"convs.{at}"].data_ptr() == after[f"norms.{at}"].data_ptr() for at in range(3)]
    assert written_over == [True, False, False]


def test_an_activation_leaves_a_convolution_that_is_looked_at_alone() -> None:
    network, image = Activated().eval(), torch.rand(1, 3, 8, 8) * 9
    fold_norms(network, lambda: network(image), keep=[network.convs[0]])
    assert not network.norms[0].act.inplace
