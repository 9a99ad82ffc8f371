"""Build networks by name. Every network takes float NCHW and gives logits NKHW at the size of its input."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import nn

from dsd_core.errors import SpecError
from dsd_core.field_problems import complaints
from dsd_core.models.enet import ENet
from dsd_core.models.espnet import ESPNet, ESPNetC
from dsd_core.models.names import STRIDES, check_network
from dsd_core.models.pspnet import pspnet_r18, pspnet_r18_half, pspnet_r101
from dsd_core.models.tap_names import TapNames
from dsd_core.network_spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec, network_spec

_WITHOUT_OPTIONS = {
    "enet": ENet,
    "pspnet_r101": pspnet_r101,
    "pspnet_r18": pspnet_r18,
    "pspnet_r18_half": pspnet_r18_half,
}


@runtime_checkable
class TapsItself(Protocol):
    """A network that knows where it is tapped, since its names come from elsewhere."""

    def default_taps(self) -> tuple[str, ...]: ...

    def head_taps(self) -> tuple[str, str]: ...


def build(network: NetworkSpec | str, classes: int, *, field: str = "/student/network") -> nn.Module:
    """The network with `classes` outputs, random or with its encoder's pretrained weights; nothing works in place.

    Raises SpecError for an encoder or option it cannot take and for no classes, WeightsError where pretrained weights
    cannot be fetched.
    """
    spec = as_spec(network)
    if classes < 1:
        raise SpecError(f"A network needs at least one class, not {classes}.")
    check_network(spec, field)
    module = _construct(spec, classes, field)
    switch_off_in_place(module)
    return module


def build_meta(network: NetworkSpec | str, classes: int, *, field: str = "/student/network") -> nn.Module:
    """The network without memory for its tensors, in eval mode: its shapes and costs can be asked, nothing computed."""
    spec = as_spec(network).model_copy(update={"encoder_weights": None})
    try:
        with torch.device("meta"):
            return build(spec, classes, field=field).eval()
    except SpecError:  # some encoders read values of tensors while they are built
        return build(spec, classes, field=field).eval().to("meta")


def stride(network: NetworkSpec | str) -> int:
    """Height and width given to the network must be multiples of this."""
    return STRIDES[as_spec(network).name]


def default_taps(module: nn.Module) -> tuple[str, ...]:
    """Names of the network's stages, shallow to deep, for `Taps`."""
    return module.default_taps() if isinstance(module, TapsItself) else tap_names(module).stages


def head_taps(module: nn.Module) -> tuple[str, ...]:
    """Names of the auxiliary logits (where there are any), the head's feature, and the logits at the head's own
    resolution."""
    if isinstance(module, TapsItself):
        return module.head_taps()
    names = tap_names(module)
    return (*filter(None, [names.auxiliary]), names.head, names.logits)


def aux_tap(module: nn.Module) -> str | None:
    """Name of the module that gives the auxiliary logits at their own resolution; None without auxiliary head."""
    return tap_names(module).auxiliary


def tap_names(module: nn.Module) -> TapNames:
    """What the network's class says; the stages of a decoder's encoder are those from 1/4 down."""
    declared = getattr(module, "tap_names", None)
    if isinstance(declared, TapNames):
        return declared
    channels: list[int] = module.get_submodule("encoder").out_channels  # type: ignore[assignment]
    stages = tuple(f"encoder:{stage}" for stage in range(2, len(channels)) if channels[stage])
    return TapNames(stages, head="decoder", logits="segmentation_head.0")


def switch_off_in_place(module: nn.Module) -> None:
    """Make every activation and dropout of the module write to new memory, so that tapped tensors stay as they were."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            setattr(part, "inplace", False)  # noqa: B010 - each kind of module declares it for itself


def as_spec(network: NetworkSpec | str) -> NetworkSpec:
    """The spec itself, or that of the short form `fpn:resnet18`. Raises SpecError."""
    if isinstance(network, NetworkSpec):
        return network
    try:
        return network_spec(network)
    except ValidationError as error:
        raise SpecError(f"{network!r} is not a network: {complaints(error)}") from error


def _construct(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    # Importing the zoos takes seconds, which networks of our own need not wait for.
    if spec.name in DECODERS:
        from dsd_core.models.zoo import build_decoder

        return build_decoder(spec, classes, field)
    if spec.name in TORCHVISION_NETWORKS:
        from dsd_core.models.torchvision_networks import build_torchvision

        return build_torchvision(spec, classes, field)
    if spec.name in _WITHOUT_OPTIONS:
        return _WITHOUT_OPTIONS[spec.name](classes)
    return _build_espnet(spec, classes, field)


def _build_espnet(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    p, q = (_count(spec, name, default, field) for name, default in (("p", 2), ("q", 8)))
    if spec.name == "espnet_c":
        return ESPNetC(classes, p, q)
    image_in_skip = spec.options.get("image_in_skip", True)
    if not isinstance(image_in_skip, bool):
        raise SpecError("image_in_skip of espnet must be true or false.", field=f"{field}/options/image_in_skip")
    return ESPNet(classes, p, q, image_in_skip)


def _count(spec: NetworkSpec, name: str, default: int, field: str) -> int:
    count = spec.options.get(name, default)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 100:
        raise SpecError(f"{name} of {spec.name} is {count!r}.", field=f"{field}/options/{name}", hint="Give 1 to 100.")
    return count
