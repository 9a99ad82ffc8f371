"""Networks by name: every decoder gives logits at the size of its image, and refuses what it cannot take."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models import build, default_taps, load_weights, outputs_in, stride
from dsd_core.models.frozen import Frozen
from dsd_core.models.names import OPTIONS, read_sidecar
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.models.weights_header import with_options_of
from dsd_core.network_spec import DECODERS, NetworkSpec, Preprocess

SET_BY_BUILD = {"self", "encoder_name", "encoder_weights", "in_channels", "classes", "upsampling", "kwargs"}
NOT_DATA = {"activation", "aux_params"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_have_the_images_size_and_gradients_reach_the_first_layer(decoder: str) -> None:
    name = f"{decoder}:resnet18"
    size = (128, 256) if decoder == "pan" else (64, 96)
    network = build(name, 5)
    network.eval()
    logits = network(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    logits.sum().backward()
    assert network.encoder.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_options_are_the_constructors_own(decoder: str) -> None:
    parameters = set(inspect.signature(getattr(smp, DECODERS[decoder]).__init__).parameters)
    assert set(OPTIONS[decoder]) == parameters - SET_BY_BUILD - NOT_DATA


@pytest.mark.parametrize("encoder", ["tu-convnext_atto", "mit_b0", "tu-tf_efficientnet_lite0"])
def test_taps_skip_the_stages_that_an_encoder_lacks(encoder: str) -> None:
    network = build(f"fpn:{encoder}", 3).eval()
    with Taps(network, default_taps(network)) as taps:
        network(torch.rand(1, 3, 64, 96))
        features = taps.features()
    assert [64 // feature.shape[2] for feature in features] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(name="pspnet", encoder="resnet18", options={"encoder_depth": 4}),
        NetworkSpec(name="unet", encoder="resnet18", options={"encoder_depth": 3, "decoder_channels": [64, 32, 16]}),
        NetworkSpec(name="fpn", encoder="resnet18", options={"encoder_depth": 4}),
        NetworkSpec(name="deeplabv3", encoder="resnet18", options={"encoder_output_stride": 16}),
    ],
    ids=str,
)
def test_logits_have_the_images_size_at_other_depths_too(spec: NetworkSpec) -> None:
    assert build(spec, 3).eval()(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_unknown_option_is_refused_with_the_allowed_ones() -> None:
    spec = NetworkSpec(name="fpn", encoder="resnet18", options={"pyramid": 3})
    with pytest.raises(SpecError, match=r"'pyramid'.*fpn takes.*decoder_pyramid_channels") as caught:
        build(spec, 3, field="/student/network")
    assert caught.value.field == "/student/network/options/pyramid"


@pytest.mark.parametrize("option", ["activation", "aux_params", "upsampling", "in_channels"])
def test_options_that_would_change_the_contract_are_refused(option: str) -> None:
    with pytest.raises(SpecError):
        build(NetworkSpec(name="fpn", encoder="resnet18", options={option: "sigmoid"}), 3)


def test_an_option_of_the_wrong_value_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="cannot be built"):
        build(NetworkSpec(name="deeplabv3", encoder="resnet18", options={"encoder_output_stride": 7}), 3)
    with pytest.raises(SpecError, match="p of espnet"):
        build(NetworkSpec(name="espnet", options={"p": 0}), 3)


def test_an_encoder_of_one_image_size_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="does not run on an image"):
        build("fpn:tu-swin_tiny_patch4_window7_224", 3)


def test_pretrained_weights_that_do_not_exist_are_named() -> None:
    with pytest.raises(SpecError, match="imagenet"):
        build(NetworkSpec(name="fpn", encoder="resnet18", encoder_weights="imagnet"), 3)
    with pytest.raises(SpecError, match="a1_in1k"):
        build(NetworkSpec(name="fpn", encoder="tu-resnet18", encoder_weights="a1_in2k"), 3)


def test_a_failed_download_is_a_weights_error(tmp_path: Path) -> None:
    code = """
from dsd_core.errors import WeightsError
from dsd_core.models import build
from dsd_core.network_spec import NetworkSpec

for encoder in ("resnet18", "tu-resnet18"):
    try:
        build(NetworkSpec(name="fpn", encoder=encoder, encoder_weights="imagenet"), 3)
    except WeightsError as error:
        print(error.field, error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("/student/network/encoder_weights The weights 'imagenet'") == 2, done.stderr
    assert done.stdout.count("could not be downloaded") == 2


def test_the_shared_fpn_loads_by_its_sidecar(shared_weights: Path) -> None:
    path = shared_weights / "camvid11_fpn_lite0_240x320.safetensors"
    spec, _ = read_sidecar(path)
    assert spec is not None
    load_weights(build(spec, outputs_in(path, spec)), path, field="/teacher/weights")


def test_weights_of_another_width_list_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "five.safetensors"
    save_file(build("espnet", 5).state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"\d+ tensors differ: .* in the file and .* in the network.*and \d+ more"
    ) as caught:
        load_weights(build("espnet", 6), path, field="/student/weights")
    assert caught.value.message.count(" in the network") == 10


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    state = build("espnet", 5).state_dict()
    state["br.weights"] = state.pop("br.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"br\.weight is missing in the file; br\.weights is not in the network"):
        load_weights(build("espnet", 5), tmp_path / "w.safetensors", field="")


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = build("espnet", 5).state_dict()
    state["br.weight"][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"NaN or infinity.*br\.weight"):
        load_weights(build("espnet", 5), tmp_path / "w.safetensors", field="")


def test_saved_weights_load_back_bit_identical(tmp_path: Path) -> None:
    network, again = build("fpn:resnet18", 4), build("fpn:resnet18", 4)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors", field="")
    saved = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())


def test_espnets_options_are_read_from_the_file(tmp_path: Path) -> None:
    spec = NetworkSpec(name="espnet", options={"p": 3, "q": 2, "image_in_skip": False})
    save_file(build(spec, 4).state_dict(), tmp_path / "w.safetensors")
    assert with_options_of(tmp_path / "w.safetensors", NetworkSpec(name="espnet")) == spec


def test_frozen_network_stays_in_eval_and_takes_no_gradient() -> None:
    segmenter = Segmenter(build("espnet", 3), Preprocess(), 3, stride("espnet"))
    frozen = Frozen(segmenter)
    outer = nn.Sequential(frozen).train()
    logits = outer(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert not any(module.training for module in frozen.modules())
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert frozen.network is segmenter.network


@pytest.mark.parametrize(
    ("network", "classes", "says"),
    [
        ("espent", 3, "There is no network named 'espent'. Did you mean: espnet"),
        ("fpn", 3, "needs an encoder"),
        ({"name": "espnet", "depth": 3}, 3, "there is no such field"),
        ("espnet", 0, "at least one class"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(network, classes, says):
    with pytest.raises(SpecError) as caught:
        build(network, classes)
    assert says in caught.value.message and "pydantic" not in caught.value.message
