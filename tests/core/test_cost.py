"""Costs: counted operations agree with the formula, latency is a time."""

import pytest
import torch
from torch import nn

from dsd_core.models import build
from dsd_core.models.cost import count_flops, count_params, counting, latency_ms
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec, Preprocess


def test_parameters_are_the_learned_values_only() -> None:
    assert count_params(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) == 3 * 4 * 9 + 4 + 8


def test_flops_are_two_per_multiply_add_and_grow_with_the_area() -> None:
    classes = 12
    small, large = count_flops("espnet", classes, (64, 64)), count_flops("espnet", classes, (128, 64))
    assert large == 2 * small
    more = count_flops(NetworkSpec(name="espnet", options={"q": 9}), classes, (64, 64))
    one_esp_module = 8 * 8 * (128 * 25 + 9 * 25 * (28 + 4 * 25))
    assert more - small == 2 * one_esp_module


def test_flops_are_counted_at_the_padded_size() -> None:
    assert count_flops("fpn:resnet18", 5, (60, 70)) == count_flops("fpn:resnet18", 5, (64, 96))


def test_every_kind_of_encoder_can_be_counted() -> None:
    assert all(count_flops(name, 5, (64, 64)) > 0 for name in ("fpn:mit_b0", "unet:tu-convnext_atto"))


def test_latency_is_measured_and_threads_are_put_back() -> None:
    threads = torch.get_num_threads()
    segmenter = Segmenter(build("espnet", 3), Preprocess(), 3, 8).eval()
    assert 0 < latency_ms(segmenter, (16, 16), threads=1) < 2000
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_takes_as_many_operations_as_its_forward_pass(kind, groups) -> None:
    conv = kind(8, 16, 3, stride=2, groups=groups)
    image = torch.zeros(2, 8, 9, 9)
    with counting() as forward:
        conv(image)
    with counting() as of_weights:
        conv(image).sum().backward()
    with counting() as of_both:
        conv(image.requires_grad_()).sum().backward()
    once = forward.get_total_flops()
    assert (of_weights.get_total_flops(), of_both.get_total_flops()) == (2 * once, 3 * once)
