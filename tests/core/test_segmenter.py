"""The segmenter prepares pixels as its network wants them, at any size, in torch and in ONNX alike."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.models import build, stride
from dsd_core.models.onnx_graph import MatmulPool, write_onnx
from dsd_core.models.segmenter import Exportable, Segmenter
from dsd_core.network_spec import Preprocess


class Echo(nn.Module):
    """Gives its input back, and a fourth channel as a void output."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        assert images_N3HW.shape[2] % 8 == 0 and images_N3HW.shape[3] % 8 == 0
        return torch.cat([images_N3HW, images_N3HW[:, :1]], dim=1)


def random_images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_channels_are_reordered_before_they_are_normalised() -> None:
    preprocess = Preprocess(order="BGR", mean=(1, 2, 3), std=(2, 4, 8))
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    logits = Segmenter(Echo(), preprocess, 3, 8)(image)
    assert logits[0, :, 0, 0].tolist() == [(30 - 1) / 2, (20 - 2) / 4, (10 - 3) / 8]


def test_void_output_is_left_out_and_the_size_is_the_images() -> None:
    images = random_images(2, 3, 13, 27)
    logits = Segmenter(Echo(), Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), 3, 8)(images)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, images.float())


def test_padding_is_the_mean_colour_at_the_right_and_bottom() -> None:
    prepared = Segmenter(Echo(), Preprocess(), 3, 8).prepare(random_images(1, 3, 13, 27))
    assert prepared.shape == (1, 3, 16, 32)
    assert prepared[:, :, 13:].abs().sum() == 0 and prepared[:, :, :, 27:].abs().sum() == 0
    assert prepared[:, :, 12, 26].abs().sum() > 0


def test_segmenter_adds_no_names_to_the_weights() -> None:
    network = build("espnet", 3)
    names = set(Segmenter(network, Preprocess(), 3, 8).state_dict())
    assert names == {f"network.{name}" for name in network.state_dict()}


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (12, 12), (13, 5)])
def test_exported_pooling_is_torchs_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    for bins in ((2, 2), (3, 3), (6, 6), (2, 5)):
        torch.testing.assert_close(MatmulPool(bins)(x), F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize(
    "name",
    [
        *("espnet", "enet", "pspnet_r18_half", "lraspp_mobilenet_v3_large"),
        *("fpn:tu-tf_efficientnet_lite0", "pspnet:resnet18", "upernet:resnet18"),
    ],
)
def test_onnx_graph_gives_the_same_logits_at_any_batch_and_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(build(name, 5), Preprocess(order="BGR"), 4, stride(name)).eval()
    write_onnx(segmenter, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 64, 96, 3), (3, 96, 64, 3), (2, 77, 131, 3)):
        images = random_images(*shape)
        with torch.no_grad():
            expected = Exportable(segmenter)(images).numpy()
        (logits,) = session.run(["logits"], {"image": images.numpy()})
        assert logits.shape == (shape[0], 4, *shape[1:3])
        assert np.abs(logits - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_an_onnx_graph_has_no_auxiliary_head(tmp_path: Path) -> None:
    network = build("pspnet_r18_half", 5)
    write_onnx(Segmenter(network, Preprocess(), 5, 8).eval(), tmp_path / "model.onnx")
    convolutions = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]
    modules = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == len([name for name in modules if not name.startswith("auxiliary.")]) == len(modules) - 2
