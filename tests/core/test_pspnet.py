"""PSPNet of the SKD protocol: its sizes are the published ones, its auxiliary head runs only where it is wanted."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from dsd_core.models import aux_tap, build, head_taps
from dsd_core.models.cost import count_flops, count_params, deployed_params, flops_of
from dsd_core.models.frozen import Frozen
from dsd_core.models.inspection import inspect_network
from dsd_core.models.networks import build_meta
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.models.weights import load_encoder
from dsd_core.network_spec import Preprocess

IMAGES = torch.rand(2, 3, 32, 48)


@pytest.mark.parametrize(
    ("name", "size", "params_M", "macs_G"),
    [
        ("pspnet_r101", (512, 512), 70.44, 289.6),
        ("pspnet_r101", (512, 1024), 70.44, 574.9),
        ("pspnet_r101", (1024, 2048), 70.44, 2274),
        ("pspnet_r18", (512, 512), 13.07, 63.3),
        ("pspnet_r18", (512, 1024), 13.07, 125.8),
        ("pspnet_r18", (1024, 2048), 13.07, 498),
    ],
)
def test_parameters_and_multiply_adds_with_the_auxiliary_head_are_those_of_the_protocol(
    name: str, size: tuple[int, int], params_M: float, macs_G: float
) -> None:
    found = inspect_network(name, 19, size)
    assert round(found.params / 1e6, 2) == params_M
    assert round(found.flops / 2e9, 0 if isinstance(macs_G, int) else 1) == macs_G


def test_half_width_has_half_the_channels_at_every_tap() -> None:
    full, half = (inspect_network(name, 19, (64, 64)) for name in ("pspnet_r18", "pspnet_r18_half"))
    widths = [[tap.shape[0] for tap in found.taps if tap.default] for found in (full, half)]
    assert widths == [[64, 128, 256, 512], [32, 64, 128, 256]]


def test_a_side_of_512_gives_a_grid_of_65() -> None:
    grids = {tap.shape[1:] for tap in inspect_network("pspnet_r18", 19, (512, 512)).taps if tap.name == "classifier"}
    assert grids == {(65, 65)}


def test_costs_as_deployed_leave_the_auxiliary_head_out() -> None:
    found, network = inspect_network("pspnet_r18", 19, (512, 512)), build_meta("pspnet_r18", 19)
    head = network.auxiliary
    assert found.params - found.params_deployed == count_params(head)
    assert found.flops - found.flops_deployed == 2 * 65 * 65 * (256 * 9 * 128 + 128 * 19)
    assert found.flops_deployed == count_flops("pspnet_r18", 19, (512, 512)) == flops_of(network, (512, 512))
    wrapped = Frozen(Segmenter(network, Preprocess(), 19, 8))
    assert deployed_params(wrapped) == found.params_deployed


def test_the_auxiliary_head_runs_in_training_and_learns_from_its_own_logits() -> None:
    network = build("pspnet_r18_half", 4).train()
    updates = network.auxiliary[1].num_batches_tracked
    network(IMAGES)
    assert updates == 1
    with Taps(network, (aux_tap(network),)) as taps:
        network(IMAGES)
        (auxiliary,) = taps.features()
    assert auxiliary.shape == (2, 4, 5, 7)
    auxiliary.square().sum().backward()
    assert network.auxiliary[0].weight.grad.abs().sum() > 0
    assert network.layer4[0].conv1.weight.grad is None


@pytest.mark.parametrize("tapped", [("auxiliary",), ("auxiliary.0", "auxiliary.4")], ids=str)
def test_a_frozen_teacher_computes_its_auxiliary_logits_only_while_they_are_tapped(tapped: tuple[str, ...]) -> None:
    frozen = Frozen(build_meta("pspnet_r18_half", 4))
    plain = flops_of(frozen, (64, 64))
    with Taps(frozen.network, tapped) as taps:
        more = flops_of(frozen, (64, 64)) - plain
        assert taps.features()[-1].shape == (1, 4, 9, 9)
    assert more == 2 * 9 * 9 * (128 * 9 * 64 + 64 * 4)
    assert flops_of(frozen, (64, 64)) == plain


def test_tapping_the_auxiliary_logits_does_not_change_the_others() -> None:
    network = build("pspnet_r18_half", 4).eval()
    logits = network(IMAGES)
    with Taps(network, head_taps(network)) as taps:
        assert torch.equal(network(IMAGES), logits)
        auxiliary, feature, own_grid = taps.features()
    assert (auxiliary.shape[1], feature.shape[1], own_grid.shape[1]) == (4, 64, 4)


def test_training_does_not_touch_the_statistics_of_a_frozen_teachers_auxiliary_head() -> None:
    frozen = Frozen(build("pspnet_r18_half", 4))
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    with Taps(frozen.network, head_taps(frozen.network)) as taps:
        frozen.train()(IMAGES)
        assert not any(feature.requires_grad for feature in taps.features())
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_a_resnet_file_with_torchvisions_names_fills_the_encoder_but_for_what_follows_the_other_stem(
    tmp_path: Path,
) -> None:
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    save_file(theirs, tmp_path / "w.safetensors")
    network = build("pspnet_r18", 4)
    fit = load_encoder(network, tmp_path / "w.safetensors", field="", min_share=0.8)
    unlike = [*fit.missing, *(sentence.partition(" ")[0] for sentence in fit.reshaped)]
    stem = [f"{part}.weight" for part in ("conv1", "conv2", "bn2", "conv3", "bn3", "layer1.0.conv1")]
    assert {*stem, "layer1.0.downsample.0.weight"} <= set(unlike)
    assert all(name.startswith(("conv", "bn", "layer1.0.")) for name in unlike)
    assert set(fit.unexpected) == {"fc.weight", "fc.bias"}
    assert torch.equal(network.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])


@pytest.mark.parametrize("name", ["pspnet_r18", "pspnet_r101"])
def test_a_file_of_the_whole_encoder_fills_it(name: str, tmp_path: Path) -> None:
    source = build(name, 4).encoder.state_dict()
    save_file(source | {"fc.weight": torch.ones(10, 512)}, tmp_path / "w.safetensors")
    network = build(name, 4)
    assert load_encoder(network, tmp_path / "w.safetensors", field="").share == 1
    assert all(torch.equal(network.get_parameter(key), source[key]) for key in ("conv3.weight", "layer4.0.bn1.bias"))
