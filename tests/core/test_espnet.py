"""ESPNet is the published network: its weights load, and score what they scored elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsd_core.models import build, load_weights, stride
from dsd_core.models.espnet import ESP, ESPNet
from dsd_core.models.names import PREPROCESS
from dsd_core.models.segmenter import Segmenter
from dsd_core.spec import NetworkSpec


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


@pytest.mark.slow
def test_camvid_weights_score_their_published_miou_and_pixel_accuracy(shared_weights: Path, camvid: Path) -> None:
    network = build("espnet", 12)
    load_weights(network, shared_weights / "camvid11_espnet_p2_q8.safetensors", field="/teacher/weights")
    segmenter = Segmenter(network, PREPROCESS["espnet_camvid"], classes=11, stride=stride("espnet")).eval()

    confusion = sum(_confusion(segmenter, path) for path in sorted((camvid / "val").glob("*.png")))
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)

    assert iou.mean() == pytest.approx(0.6935, abs=0.001)
    assert hits.sum() / confusion.sum() == pytest.approx(0.9330, abs=0.001)


def _confusion(segmenter: Segmenter, path: Path) -> np.ndarray:
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    label = np.array(Image.open(path.parent.with_name("valannot") / path.name))
    with torch.inference_mode():
        predicted = segmenter(image[None])[0].argmax(0).numpy()
    valid = label < 11
    return np.bincount(label[valid].astype(int) * 11 + predicted[valid], minlength=121).reshape(11, 11)
