"""Published weights score on CamVid what they scored elsewhere, so that network and preprocessing are the published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsd_core.models import build, load_weights, stride
from dsd_core.models.names import PREPROCESS
from dsd_core.models.segmenter import Segmenter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "preprocess", "miou", "pixel_accuracy"),
    [
        ("espnet", "camvid11_espnet_p2_q8", "espnet_camvid", 0.6935, 0.9330),
        ("enet", "camvid11_enet_2018", "enet_camvid", 0.6567, 0.9237),
    ],
)
def test_camvid_weights_score_their_published_miou_and_pixel_accuracy(
    name: str, file: str, preprocess: str, miou: float, pixel_accuracy: float, shared_weights: Path, camvid: Path
) -> None:
    network = build(name, 12)
    load_weights(network, shared_weights / f"{file}.safetensors", field="/teacher/weights")
    segmenter = Segmenter(network, PREPROCESS[preprocess], classes=11, stride=stride(name)).eval()

    confusion = sum(_confusion(segmenter, path) for path in sorted((camvid / "val").glob("*.png")))
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)

    assert iou.mean() == pytest.approx(miou, abs=0.001)
    assert hits.sum() / confusion.sum() == pytest.approx(pixel_accuracy, abs=0.001)


def _confusion(segmenter: Segmenter, path: Path) -> np.ndarray:
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    label = np.array(Image.open(path.parent.with_name("valannot") / path.name))
    with torch.inference_mode():
        predicted = segmenter(image[None])[0].argmax(0).numpy()
    valid = label < 11
    return np.bincount(label[valid].astype(int) * 11 + predicted[valid], minlength=121).reshape(11, 11)
