"""Names and sidecars: known encoders are those of the zoos, text is read as data, and mistakes are named."""

import json
import random
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models.names import PREPROCESS, check_network, encoders, outputs_in, parse_preprocess, read_sidecar
from dsd_core.models.sidecar import network_from_text, parse_network
from dsd_core.models.weights_header import shapes_in
from dsd_core.network_spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec, Preprocess
from tests.builders import a_header


def test_names_are_read_without_torch() -> None:
    code = "import sys, dsd_core.models.names; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_committed_encoders_are_those_that_the_zoos_offer() -> None:
    from dsd_core.models.encoder_list import gives_pyramid, smp_encoders, timm_models

    listed = encoders()
    assert [name for name in listed if not name.startswith("tu-")] == smp_encoders()
    offered = timm_models()
    assert set(listed) <= {*smp_encoders(), *offered}
    for name in random.Random(0).sample(offered, 12):
        assert gives_pyramid(name) == (name in listed), name


def test_unknown_encoder_is_refused_with_near_names() -> None:
    with pytest.raises(SpecError, match=r"'resnet19'.*Did you mean.*resnet18") as caught:
        check_network(NetworkSpec(name="fpn", encoder="resnet19"), "/student/network")
    assert caught.value.field == "/student/network/encoder"


@pytest.mark.parametrize("encoder", ["tu-hf-hub:someone/net", "tu-local-dir:/tmp", "resnet18.tag", "tu-resnet18.a/b"])
def test_encoders_are_never_fetched_from_a_place_that_the_job_names(encoder: str) -> None:
    with pytest.raises(SpecError, match="no encoder named"):
        check_network(NetworkSpec(name="fpn", encoder=encoder), "/student/network")


@pytest.mark.parametrize(
    ("encoder", "weights"),
    [("mit_b0", "imagenet"), ("mobileone_s1", "imagenet"), ("tu-mobileone_s1", "imagenet"), ("resnet18", "swsl")],
)
def test_pretrained_weights_of_restricted_licence_are_refused_with_the_reason(encoder: str, weights: str) -> None:
    check_network(NetworkSpec(name="fpn", encoder=encoder), "/student/network")
    with pytest.raises(SpecError, match=r"are under .*(NVIDIA|Apple|CC BY-NC).*DSD_ALLOW_RESTRICTED_WEIGHTS"):
        check_network(NetworkSpec(name="fpn", encoder=encoder, encoder_weights=weights), "/student/network")


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("true", True), ("", False), ("0", False), ("no", False)])
def test_the_operator_and_nobody_else_allows_restricted_weights(
    value: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_ALLOW_RESTRICTED_WEIGHTS", value)
    network = NetworkSpec(name="fpn", encoder="mit_b0", encoder_weights="imagenet")
    with nullcontext() if allowed else pytest.raises(SpecError, match="NVIDIA"):
        check_network(network, "/student/network")


def test_espnet_takes_no_encoder_weights() -> None:
    with pytest.raises(SpecError, match="has no encoder"):
        check_network(NetworkSpec(name="espnet", encoder_weights="imagenet"), "/student/network")


# --- sidecars ---


def test_the_shared_sidecar_is_understood(shared_weights: Path) -> None:
    network, preprocess = read_sidecar(shared_weights / "camvid11_fpn_lite0_240x320.safetensors")
    assert network == NetworkSpec(
        name="fpn",
        encoder="tu-tf_efficientnet_lite0",
        options={"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 64},
    )
    assert preprocess is not None
    assert preprocess.mean == pytest.approx(PREPROCESS["fpn_lite0_camvid"].mean)
    assert preprocess.std == pytest.approx(PREPROCESS["fpn_lite0_camvid"].std)


def test_an_exported_config_is_understood(tmp_path: Path) -> None:
    network = NetworkSpec(name="unet", encoder="resnet18", options={"decoder_channels": [64, 32, 16, 8, 4]})
    preprocess = Preprocess(order="BGR", mean=(1, 2, 3), std=(4, 5, 6))
    said = {"network": network.model_dump(), "preprocess": preprocess.model_dump(), "classes": ["road", "sky"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert read_sidecar(tmp_path / "model.safetensors") == (network, preprocess)


def test_the_file_of_the_same_stem_comes_before_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"network": "espnet"}')
    (tmp_path / "model.json").write_text('{"network": "fpn:resnet18"}')
    assert read_sidecar(tmp_path / "model.safetensors") == (NetworkSpec(name="fpn", encoder="resnet18"), None)


def test_no_sidecar_says_nothing(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "model.safetensors") == (None, None)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoders_constructor_is_understood(name: str) -> None:
    parsed = parse_network(f"smp.{DECODERS[name]}(encoder_name='resnet18', classes=7, encoder_depth=5)")
    assert parsed == NetworkSpec(name=name, encoder="resnet18", options={"encoder_depth": 5})


@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_every_builder_of_torchvision_is_understood(name: str) -> None:
    call = f"torchvision.models.segmentation.{name}(weights=None, num_classes=11)"
    assert parse_network(call) == NetworkSpec(name=name)


def test_a_call_with_an_auxiliary_head_says_so() -> None:
    assert parse_network("fcn_resnet50(num_classes=3, aux_loss=True)").options == {"aux_loss": True}


@pytest.mark.parametrize(
    "text",
    [
        "fcn_resnet50(None)",
        "fcn_resnet50(replace_stride_with_dilation=[True, True, True])",
        "FPN(__import__('os').getcwd())",
        "os.system('true')",
        "FPN('resnet18', in_channels=4)",
        "FPN('resnet18', **{})",
        "FPN('resnet18', activation='sigmoid')",
        "FPN(('resnet18',",
        "ENet(12)",
        "nonesuch",
        7,
    ],
)
def test_text_that_is_no_known_network_is_refused_and_never_run(text: object) -> None:
    with pytest.raises(SpecError, match="does not name a network"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "mean", "std", "order"),
    [
        ("RGB 0..255, (x - 127) / 128", (127, 127, 127), (128, 128, 128), "RGB"),
        ("BGR 0..255, (x - [1, 2, 3]) / [4, 5, 6]", (1, 2, 3), (4, 5, 6), "BGR"),
        ("RGB 0..1, (x - 0.5) * 2", (127.5,) * 3, (127.5,) * 3, "RGB"),
        ("RGB 0..1, x", (0, 0, 0), (255, 255, 255), "RGB"),
        ("RGB 0..255, x / 255 - [0.1, 0.2, 0.3]", (25.5, 51, 76.5), (255, 255, 255), "RGB"),
        ("RGB 0..255, -(10 - x) / (2*[1, 2, 4])", (10, 10, 10), (2, 4, 8), "RGB"),
    ],
)
def test_formulas_are_affine_in_x(text: str, mean: tuple[float, ...], std: tuple[float, ...], order: str) -> None:
    parsed = parse_preprocess(text)
    assert (parsed.mean, parsed.std, parsed.order) == (pytest.approx(mean), pytest.approx(std), order)


@pytest.mark.parametrize(
    "text",
    [
        "imagnet",
        "RGB 0..255, x * x",
        "RGB 0..255, x / 0",
        "RGB 0..255, 3",
        "RGB 0..255, -x",
        "RGB 0..255, 1 / x",
        "RGB 0..255, x - [1, 2]",
        "RGB 0..255, x ** 2",
        "RGB 0..255, f(x)",
        "RGB 0..255, x.real",
        "RGB 0..255, (x",
        "RGB 0..255, x - " + "-" * 400 + "1" * 400,
        {"order": "RBG"},
    ],
)
def test_text_that_is_no_preprocessing_is_refused(text: object) -> None:
    with pytest.raises(SpecError, match="is no preprocessing"):
        parse_preprocess(text)


def test_a_broken_sidecar_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(SpecError, match=r"model\.json cannot be read as JSON"):
        read_sidecar(tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"preprocess": "RGB 0..255, x*x"}')
    with pytest.raises(SpecError, match=r"model\.json: .*not affine") as caught:
        read_sidecar(tmp_path / "model.safetensors", field="/teacher")
    assert caught.value.field == "/teacher/preprocess"


# --- headers of weights files ---


def test_outputs_are_read_from_the_header(shared_weights: Path) -> None:
    espnet, fpn = NetworkSpec(name="espnet"), NetworkSpec(name="fpn", encoder="resnet18")
    assert outputs_in(shared_weights / "camvid11_espnet_p2_q8.safetensors", espnet) == 12
    assert outputs_in(shared_weights / "cityscapes_espnet_p2_q8.safetensors", espnet) == 20
    assert outputs_in(shared_weights / "camvid11_fpn_lite0_240x320.safetensors", fpn) == 11


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path = a_header(tmp_path / "w.safetensors", {"other.weight": tensor}, b"\0" * 4)
    with pytest.raises(WeightsError, match=r"holds no weights of espnet.*other\.weight"):
        outputs_in(path, NetworkSpec(name="espnet"))


def test_a_missing_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no weights file"):
        shapes_in(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, struct.pack("<Q", 4) + b"{]{]"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        shapes_in(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "header", [[], {"a": 1}, {"a": {"shape": [1]}}, {"a": {"data_offsets": [0, 4], "shape": None}}]
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        shapes_in(a_header(tmp_path / "w.safetensors", header, b"\0" * 4))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    path = a_header(tmp_path / "w.safetensors", {"a": tensor}, b"\0" * 5)
    with pytest.raises(WeightsError, match="5 bytes of tensors, its header promises 8"):
        shapes_in(path)


@pytest.mark.parametrize(
    ("said", "reason"),
    [("espent", "Did you mean: espnet"), ("fpn", "needs an encoder, for example fpn:resnet18.")],
)
def test_a_network_that_is_none_is_answered_in_a_sentence(said, reason):
    with pytest.raises(SpecError) as caught:
        network_from_text(said, field="NETWORK")
    assert reason in caught.value.message and "Value error" not in caught.value.message
