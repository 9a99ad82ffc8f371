"""Taps capture what modules return, leave the network as it is, and say what is wrong."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from dsd_core.errors import SpecError
from dsd_core.models import build, default_taps, head_taps
from dsd_core.models.frozen import Frozen
from dsd_core.models.taps import Taps, run_to_last


class Net(nn.Module):
    """Two stages and a list-valued branch; `spare` never runs."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.pair = Pair()
        self.spare = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pair(self.second(self.act(self.first(x))))[1]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x + 1]


IMAGE = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8) / 100


def test_features_come_in_the_order_of_the_names() -> None:
    net = Net()
    with Taps(net, ("second", "first", "pair:0")) as taps:
        net(IMAGE)
        second, first, pair = taps.features()
    assert (second.shape[1], first.shape[1]) == (5, 4)
    assert pair is second


def test_taps_do_not_change_the_result_or_the_gradients() -> None:
    net = Net()
    plain = net(IMAGE)
    plain.sum().backward()
    gradient = net.first.weight.grad.clone()
    net.zero_grad()
    with Taps(net, ("first", "second")) as taps:
        tapped = net(IMAGE)
        taps.features()
    tapped.sum().backward()
    assert torch.equal(plain, tapped)
    assert torch.equal(gradient, net.first.weight.grad)


def test_gradients_flow_through_a_tapped_feature() -> None:
    net = Net()
    with Taps(net, ("first",)) as taps:
        net(IMAGE)
        taps.features()[0].sum().backward()
    assert net.first.weight.grad.abs().sum() > 0
    assert net.second.weight.grad is None


def test_nothing_is_kept_alive_after_features_are_handed_over() -> None:
    net = Net()
    with Taps(net, ("first",)) as taps:
        net(IMAGE)
        feature = weakref.ref(taps.features()[0])
        gc.collect()
        assert feature() is None


def test_each_pass_forgets_the_one_before() -> None:
    net = Net()
    with Taps(net, ("first",)) as taps:
        net(IMAGE)
        net(IMAGE[:1])
        assert taps.features()[0].shape[0] == 1


def test_scoring_in_inference_mode_captures_nothing() -> None:
    net = Net()
    with Taps(net, ("first",)) as taps:
        with torch.inference_mode():
            net(IMAGE)
        with pytest.raises(SpecError, match="did not run"):
            taps.features()


def test_hooks_are_gone_outside_with() -> None:
    net = Net()
    with Taps(net, ("first",)):
        pass
    assert not net.first._forward_hooks and not net._forward_pre_hooks


def test_a_feature_altered_in_place_afterwards_is_an_error() -> None:
    net = Net(inplace=True)
    with Taps(net, ("first",)) as taps:
        net(IMAGE)
        with pytest.raises(SpecError, match=r"'first' was altered in place"):
            taps.features()


def test_a_tap_that_did_not_run_is_an_error() -> None:
    net = Net()
    with Taps(net, ("spare",)) as taps:
        net(IMAGE)
        with pytest.raises(SpecError, match="'spare' did not run"):
            taps.features()


def test_an_unknown_name_is_an_error_with_near_names() -> None:
    with pytest.raises(SpecError, match=r"'secnd'.*Did you mean: second") as caught:
        Taps(Net(), ("secnd",), field="/teacher/taps")
    assert caught.value.field == "/teacher/taps"


def test_a_list_without_an_item_number_names_the_items() -> None:
    net = Net()
    with Taps(net, ("pair",)) as taps:
        net(IMAGE)
        with pytest.raises(SpecError, match=r"returns 2 items.*pair:0, pair:1"):
            taps.features()


def test_an_item_beyond_the_list_is_an_error() -> None:
    net = Net()
    with Taps(net, ("pair:2",)) as taps:
        net(IMAGE)
        with pytest.raises(SpecError, match="an item that its module does not return"):
            taps.features()


def test_a_module_that_runs_twice_is_an_error() -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    net[1] = net[0]
    with Taps(net, ("0",)) as taps:
        net(IMAGE)
        with pytest.raises(SpecError, match="ran more than once"):
            taps.features()


@pytest.mark.parametrize("name", ["espnet", "fpn:resnet18", "pspnet_r18_half", "lraspp_mobilenet_v3_large"])
def test_taps_of_a_compiled_network_resolve_on_the_network_inside(name: str) -> None:
    network = build(name, 4).eval()
    images = torch.rand(1, 3, 64, 96)
    names = (*default_taps(network), *head_taps(network))
    with Taps(network, names) as taps:
        logits = network(images)
        expected = taps.features()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with Taps(compiled, names) as taps:
        for _ in range(2):
            torch.testing.assert_close(compiled(images), logits)
            for got, wanted in zip(taps.features(), expected, strict=True):
                torch.testing.assert_close(got, wanted)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_taps_fire_under_ddp_and_gradients_of_features_arrive() -> None:
    torch.manual_seed(0)
    network = build("pspnet_r18_half", 3)
    names = (*default_taps(network), *head_taps(network))
    wrapped = nn.parallel.DistributedDataParallel(network)
    images = torch.rand(2, 3, 32, 48)
    for _ in range(2):  # the second pass fails where the first left a gradient unreduced
        with Taps(wrapped, names) as taps:
            logits = wrapped(images)
            features = taps.features()
        assert [feature.shape[1] for feature in features] == [32, 64, 128, 256, 3, 64, 3]
        (logits.mean() + sum(feature.square().mean() for feature in features)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_tap_before_an_activation_in_place_keeps_what_its_module_gave() -> None:
    network = build("fpn:resnet18", 3).eval()
    with Taps(network, ("encoder.bn1", "encoder.conv1")) as taps:
        network(torch.rand(1, 3, 64, 96))
        normalised, convolved = taps.features()
    assert normalised.min() < 0  # a rectifier that wrote into it would have left no negative value
    torch.testing.assert_close(normalised, network.encoder.bn1(convolved))


def test_all_features_leaves_out_what_cannot_be_tapped() -> None:
    net = Net(inplace=True)
    with Taps(net, [name for name, _ in net.named_modules() if name]) as taps:
        net(IMAGE)
        assert list(taps.all_features()) == ["act", "second", "pair:0", "pair:1"]


@pytest.mark.parametrize("name", ["espnet", "fpn:resnet18", "pspnet_r18_half", "lraspp_mobilenet_v3_large"])
def test_a_pass_that_ends_at_the_last_tap_has_the_features_of_a_whole_one_and_runs_nothing_more(name: str) -> None:
    network = build(name, 4).eval()
    images, ran = torch.rand(2, 3, 64, 96), []
    for module_name, module in network.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=module_name: ran.append(name))
    deep, shallow = default_taps(network)[::-1], head_taps(network)[:1]
    with Taps(network, deep) as taps, Taps(network, shallow) as others:
        with torch.no_grad():
            network(images)
            whole, expected = ran.copy(), [*taps.features(), *others.features()]
            ran.clear()
            run_to_last(lambda: network(images), (taps, others))
            cut = ran.copy()
            found = [*taps.features(), *others.features()]
            network(images)  # whole again
            assert len(taps.features()) == len(deep) and ran[len(cut) :] == whole
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert cut == whole[: len(cut)] and cut[-1] in {name.partition(":")[0] for name in (*deep, *shallow)}
    assert not set(cut) & {"", head_taps(network)[-1]}


def test_a_pass_that_meets_no_last_tap_runs_to_its_end_and_its_own_errors_come_through() -> None:
    net = Net()
    with Taps(net, ("first", "spare")) as taps:
        run_to_last(lambda: net(IMAGE), (taps,))
        with pytest.raises(SpecError, match="'spare' did not run"):
            taps.features()
        with pytest.raises(RuntimeError, match="channels"):
            run_to_last(lambda: net(IMAGE[:, :2]), (taps,))
    assert not net.first._forward_hooks and not net.spare._forward_hooks


def test_a_frozen_network_runs_to_its_taps_and_a_compiled_one_to_its_end() -> None:
    frozen, ended = Frozen(Net()), []
    with Taps(frozen.network, ("first",)) as taps:
        frozen.network.act.register_forward_hook(lambda module, inputs, output: ended.append(output))
        frozen.run_to_taps(IMAGE, (taps,))
        (expected,) = taps.features()
        assert not expected.requires_grad and not ended and not frozen.compiled
        frozen.network.compile(backend="eager")
        frozen.run_to_taps(IMAGE, (taps,))
        assert frozen.compiled and torch.equal(taps.features()[0], expected) and ended
