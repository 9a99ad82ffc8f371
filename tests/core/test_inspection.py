"""Inspecting a network tells its size, cost, taps and licences, of every network and without computing anything."""

from __future__ import annotations

import math
import os
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn

from dsd_core.errors import SpecError
from dsd_core.models import aux_tap, build, default_taps, head_taps, outputs_in, stride
from dsd_core.models.cost import count_params
from dsd_core.models.inspection import as_text, inspect_network
from dsd_core.models.networks import build_meta
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.sidecar import network_from_text
from dsd_core.models.taps import Taps
from dsd_core.models.weights_header import with_options_of
from dsd_core.network_spec import DECODERS, NetworkSpec, Preprocess, network_spec
from tests.builders import NETWORKS, a_header

OTHER_ENCODERS = [f"{decoder}:{encoder}" for decoder in DECODERS for encoder in ("mobilenet_v2", "tu-convnext_atto")]


@cache
def meta(name: str) -> nn.Module:
    """The network with seven outputs, which no test alters."""
    return build_meta(name, 7)


@pytest.mark.parametrize("name", [*NETWORKS, *OTHER_ENCODERS])
def test_default_and_head_taps_of_every_network_are_features_from_shallow_to_deep(name: str) -> None:
    network = meta(name)
    stages, head = default_taps(network), head_taps(network)
    with Taps(network, (*stages, *head)) as taps, torch.no_grad():
        network(torch.empty(1, 3, 128, 256, device="meta"))
        features = taps.features()
    widths = [feature.shape[3] for feature in features[: len(stages)]]
    assert widths == sorted(widths, reverse=True)
    assert len(stages) == {"pspnet": 2, "espnet": 3, "espnet_c": 3}.get(name.partition(":")[0], 4)
    assert features[-1].shape[1] == 7
    assert head[:-2] == ((aux_tap(network),) if aux_tap(network) else ())
    assert all(feature.shape[1] == 7 for feature in features[len(stages) : -2])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_without_memory_and_gives_logits_of_the_size_of_any_image(name: str) -> None:
    network = meta(name)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert not [part for part in network.modules() if getattr(part, "inplace", False)]
    segmenter = Segmenter(network, Preprocess(), 6, stride(name)).to("meta")
    images = torch.empty(2, 3, 77, 131, dtype=torch.uint8, device="meta")
    assert segmenter(images).shape == (2, 6, 77, 131)


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_and_options_of_every_network_are_read_from_its_file(name: str, tmp_path: Path) -> None:
    shapes = {key: list(tensor.shape) for key, tensor in meta(name).state_dict().items()}
    ends = list(accumulate(4 * math.prod(shape) for shape in shapes.values()))
    places = zip(shapes.items(), [0, *ends], ends, strict=False)
    header = {key: {"dtype": "F32", "shape": shape, "data_offsets": [a, b]} for (key, shape), a, b in places}
    path, spec = a_header(tmp_path / "w.safetensors", header), network_spec(name)
    os.truncate(path, path.stat().st_size + ends[-1])  # the tensors themselves, which take no room on the disk
    assert outputs_in(path, spec) == 7
    as_read = with_options_of(path, spec)
    assert as_read == spec or build_meta(as_read, 7).state_dict().keys() == shapes.keys()


def test_a_torchvision_file_without_auxiliary_head_is_recognised(tmp_path: Path) -> None:
    path, spec = a_header(tmp_path / "w.safetensors", {}), NetworkSpec(name="fcn_resnet50")
    assert with_options_of(path, spec).options == {"aux_loss": False}


def test_building_on_meta_draws_no_random_numbers_and_gives_the_network_itself() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = build_meta("fpn:resnet18", 5)
    assert torch.equal(torch.get_rng_state(), before)
    shapes = {name: tensor.shape for name, tensor in build("fpn:resnet18", 5).state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes


def test_taps_are_those_that_can_be_tapped() -> None:
    found = inspect_network("deeplabv3plus:resnet18", 5, (64, 96))
    network = build("deeplabv3plus:resnet18", 5).eval()
    with Taps(network, [tap.name for tap in found.taps]) as taps:
        network(torch.rand(1, 3, 64, 96))
        shapes = [tuple(feature.shape[1:]) for feature in taps.features()]
    assert shapes == [tap.shape for tap in found.taps]
    names = {tap.name for tap in found.taps}
    assert {*default_taps(network), *head_taps(network)} <= names
    assert "encoder" not in names and "encoder.layer1.0.relu" not in names  # a list, and a module that runs twice


def test_the_image_grows_to_the_stride_and_the_counts_are_those_of_the_network() -> None:
    found = inspect_network("fpn:resnet18", 5, (60, 70))
    assert (found.size, found.stride) == ((64, 96), 32)
    assert found.params == found.params_deployed == count_params(build("fpn:resnet18", 5))
    assert found.flops == found.flops_deployed


@pytest.mark.parametrize("allow", ["0", "1"])
def test_licences_are_told_and_restricted_weights_are_off_unless_allowed(
    allow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_ALLOW_RESTRICTED_WEIGHTS", allow)
    smp, timm = (inspect_network(name, 5, (64, 64)).weights for name in ("fpn:resnet18", "fpn:tu-resnet18"))
    weights = {set_.name: (set_.licence, set_.allowed) for set_ in (*smp, *timm)}
    assert weights["imagenet"] == ("apache-2.0", True)
    assert weights["tv_in1k"] == ("bsd-3-clause", True)
    assert weights["swsl"] == ("CC BY-NC 4.0: not for commercial use", allow == "1")
    assert weights["fb_ssl_yfcc100m_ft_in1k"] == ("cc-by-nc-4.0", allow == "1")
    assert smp[0].licence is None and smp[0].allowed
    assert inspect_network("enet", 5, (64, 64)).weights == ()


@pytest.mark.parametrize("size", [(0, 512), (512, 100_000)])
def test_a_size_that_no_image_has_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match="Give 16 to 8192"):
        inspect_network("enet", 5, size)


def test_the_text_for_people_has_the_counts_and_the_taps() -> None:
    text = as_text(inspect_network("pspnet_r18", 19, (512, 512)))
    assert "13.07 M (12.77 M without the auxiliary head)" in text
    assert all(name in text for name in ("layer1", "auxiliary", "pyramid", "65 x 65", "multiples of 8"))


def test_a_network_may_be_given_as_json() -> None:
    spec = network_from_text('{"name": "espnet", "options": {"q": 3}}', field="NETWORK")
    assert spec == NetworkSpec(name="espnet", options={"q": 3})


@pytest.mark.parametrize("text", ["{", '{"name": "espnett"}', "espnett", "fpn", '{"name": "fpn", "encoder": 3}'])
def test_text_that_is_no_network_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        network_from_text(text, field="NETWORK")
    assert caught.value.field == "NETWORK"
