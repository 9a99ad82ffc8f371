"""ESPNet is the published network: its weights load, its modules are the paper's."""

from pathlib import Path

import torch
import torch.nn.functional as F

from dsd_core.models import build, load_weights
from dsd_core.models.espnet import ESP, ESPNet
from dsd_core.network_spec import NetworkSpec


def test_published_camvid_weights_load_and_the_size_is_the_papers(shared_weights: Path) -> None:
    network = build("espnet", 12)
    load_weights(network, shared_weights / "camvid11_espnet_p2_q8.safetensors", field="/teacher/weights")
    assert sum(p.numel() for p in network.parameters()) == 354_517


def test_published_cityscapes_weights_load_without_the_image_in_the_skip(shared_weights: Path) -> None:
    network = build(NetworkSpec(name="espnet", options={"image_in_skip": False}), 20)
    load_weights(network, shared_weights / "cityscapes_espnet_p2_q8.safetensors", field="/teacher/weights")


def test_p_and_q_are_the_numbers_of_modules_at_levels_2_and_3() -> None:
    network = build(NetworkSpec(name="espnet", options={"p": 1, "q": 3}), 4)
    assert (len(network.encoder.level2), len(network.encoder.level3)) == (1, 3)


def test_logits_have_the_size_of_the_image() -> None:
    logits = ESPNet(5).eval()(torch.zeros(2, 3, 40, 64))
    assert logits.shape == (2, 5, 40, 64)


def test_two_classes_are_enough() -> None:
    assert ESPNet(2).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 2, 16, 16)


def test_each_dilated_branch_adds_the_one_before() -> None:
    module = ESP(10, 10)
    x = torch.randn(1, 10, 12, 12)
    reduced = module.c1(x)
    branches = module.branches(x)
    expected = module.d2(reduced) + module.d4(reduced)
    torch.testing.assert_close(branches[:, 4:6], expected)
    torch.testing.assert_close(branches[:, :2], module.d1(reduced))


def test_espnet_c_is_the_encoder_of_espnet_with_its_logits_grown_bilinearly() -> None:
    espnet, espnet_c = build("espnet", 7).eval(), build("espnet_c", 7).eval()
    encoder = {name: tensor for name, tensor in espnet.state_dict().items() if name.startswith("encoder.")}
    espnet_c.load_state_dict(encoder, strict=True)
    images = torch.rand(2, 3, 40, 64)
    eighth = espnet.encoder.classifier(espnet.encoder(images)[-1])
    assert eighth.shape == (2, 7, 5, 8)
    expected = F.interpolate(eighth, size=(40, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(espnet_c(images), expected)
