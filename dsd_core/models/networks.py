"""Build networks by name. Every network takes float NCHW and gives logits NKHW at the size of its input."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from dsd_core.errors import SpecError
from dsd_core.models.espnet import ESPNet
from dsd_core.models.names import STRIDES, check_network
from dsd_core.spec import NetworkSpec, network_spec


@runtime_checkable
class TapsItself(Protocol):
    """A network that knows where it is tapped, since its names come from elsewhere."""

    def default_taps(self) -> tuple[str, ...]: ...

    def head_taps(self) -> tuple[str, str]: ...


def build(network: NetworkSpec | str, classes: int, *, field: str = "/student/network") -> nn.Module:
    """The network with `classes` outputs, random or with its encoder's pretrained weights; nothing works in place.

    Raises SpecError for an encoder or option it cannot take, WeightsError where pretrained weights cannot be fetched.
    """
    spec = as_spec(network)
    check_network(spec, field)
    module = _build_espnet(spec, classes, field) if spec.name == "espnet" else _build_decoder(spec, classes, field)
    switch_off_in_place(module)
    return module


def stride(network: NetworkSpec | str) -> int:
    """Height and width given to the network must be multiples of this."""
    return STRIDES[as_spec(network).name]


def default_taps(module: nn.Module) -> tuple[str, ...]:
    """Names of the network's stages, shallow to deep, for `Taps`: 1/2 to 1/8 in ESPNet, 1/4 and below in others."""
    if isinstance(module, TapsItself):
        return module.default_taps()
    if isinstance(module, ESPNet):
        return ("encoder.level1", "encoder.level2", "encoder.level3")
    channels: list[int] = module.get_submodule("encoder").out_channels  # type: ignore[assignment]
    return tuple(f"encoder:{stage}" for stage in range(2, len(channels)) if channels[stage])


def head_taps(module: nn.Module) -> tuple[str, ...]:
    """Names of the head's input and of the logits at the head's own resolution; no network has auxiliary logits."""
    if isinstance(module, TapsItself):
        return module.head_taps()
    return ("conv", "classifier") if isinstance(module, ESPNet) else ("decoder", "segmentation_head.0")


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
    except ValueError as error:
        raise SpecError(f"{network!r} is not a network: {error}") from error


def _build_espnet(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    p, q = (_count(spec, name, default, field) for name, default in (("p", 2), ("q", 8)))
    image_in_skip = spec.options.get("image_in_skip", True)
    if not isinstance(image_in_skip, bool):
        raise SpecError("image_in_skip of espnet must be true or false.", field=f"{field}/options/image_in_skip")
    return ESPNet(classes, p, q, image_in_skip)


def _count(spec: NetworkSpec, name: str, default: int, field: str) -> int:
    count = spec.options.get(name, default)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 100:
        raise SpecError(f"{name} of espnet is {count!r}.", field=f"{field}/options/{name}", hint="Give 1 to 100.")
    return count


def _build_decoder(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    # Importing the zoo takes seconds, which ESPNet need not wait for.
    from dsd_core.models.zoo import build_decoder

    return build_decoder(spec, classes, field)
