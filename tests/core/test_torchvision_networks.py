"""torchvision's networks are torchvision's: same tensors, same logits, same sizes; backbones load their own weights."""

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_builder, get_model_weights

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models import build, default_taps, head_taps
from dsd_core.models.cost import count_params
from dsd_core.models.networks import build_meta
from dsd_core.models.taps import Taps
from dsd_core.network_spec import TORCHVISION_NETWORKS, NetworkSpec

MOBILE = "deeplabv3_mobilenet_v3_large"


@pytest.mark.parametrize("name", TORCHVISION_NETWORKS)
def test_the_size_is_that_of_the_weights_that_torchvision_publishes(name: str) -> None:
    published = get_model_weights(name).DEFAULT.meta
    assert count_params(build_meta(name, len(published["categories"]))) == published["num_params"]


@pytest.mark.parametrize("name", ["fcn_resnet50", MOBILE, "lraspp_mobilenet_v3_large"])
def test_tensors_and_logits_are_torchvisions_own(name: str) -> None:
    torch.manual_seed(0)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=5, **auxiliary).eval()
    ours = build(name, 5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(1, 3, 45, 61)
    expected = theirs(images)
    with Taps(ours, head_taps(ours)) as taps:
        torch.testing.assert_close(ours(images), expected["out"])
        tapped = taps.features()
    if auxiliary:
        grown = torch.nn.functional.interpolate(tapped[0], size=(45, 61), mode="bilinear", align_corners=False)
        torch.testing.assert_close(grown, expected["aux"])


def test_the_auxiliary_head_can_be_left_out() -> None:
    network = build(NetworkSpec(name=MOBILE, options={"aux_loss": False}), 5).eval()
    assert head_taps(network) == ("classifier.3", "classifier.4")
    assert not [name for name in network.state_dict() if name.startswith("aux_classifier")]
    with Taps(network, default_taps(network)) as taps:
        network(torch.rand(1, 3, 64, 96))
        assert [64 // feature.shape[2] for feature in taps.features()] == [4, 8, 16, 16]


def test_an_auxiliary_head_that_is_neither_there_nor_not_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="aux_loss of fcn_resnet50 must be true or false") as caught:
        build(NetworkSpec(name="fcn_resnet50", options={"aux_loss": "yes"}), 5)
    assert caught.value.field == "/student/network/options/aux_loss"


def test_imagenet_fills_the_backbone_from_torchvisions_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = get_model_weights("mobilenet_v3_large")["IMAGENET1K_V1"].url
    published = get_model_builder("mobilenet_v3_large")(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])

    network = build(NetworkSpec(name=MOBILE, encoder_weights="imagenet"), 5)

    backbone = network.backbone.state_dict()
    assert backbone and all(torch.equal(tensor, published[f"features.{name}"]) for name, tensor in backbone.items())


def test_a_failed_download_is_a_weights_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        WeightsError, match=r"MobileNet_V3_Large_Weights\.IMAGENET1K_V1 could not be downloaded"
    ) as caught:
        build(NetworkSpec(name="lraspp_mobilenet_v3_large", encoder_weights="imagenet"), 5)
    assert caught.value.field == "/student/network/encoder_weights"


@pytest.mark.parametrize(("name", "message"), [("fcn_resnet50", "imagenet"), ("enet", "has no encoder")])
def test_weights_that_a_network_cannot_fetch_are_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build(NetworkSpec(name=name, encoder_weights="coco"), 5)
    assert caught.value.field == "/student/network/encoder_weights"
