"""What a network is, without computing anything: its size, its cost, its taps, and the licences of its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dsd_core.errors import SpecError
from dsd_core.models.cost import count_params, deployed_params, flops_of, padded
from dsd_core.models.licences import FREE, allowed_here
from dsd_core.models.names import BACKBONE_WEIGHTS
from dsd_core.models.networks import as_spec, aux_tap, build_meta, default_taps, head_taps, stride
from dsd_core.models.taps import Taps
from dsd_core.network_spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec

SIDES = (16, 8192)  # least and greatest


@dataclass(frozen=True)
class Tap:
    """A name that `taps` takes, with what it gives for one image: channels, height, width, and 1 / `stride` in size."""

    name: str
    shape: tuple[int, int, int]
    stride: int
    default: bool


@dataclass(frozen=True)
class PretrainedWeights:
    """A name that `encoder_weights` takes, its licence where one is known, and whether it may be used here."""

    name: str
    licence: str | None
    allowed: bool


@dataclass(frozen=True)
class Inspection:
    """Counts with the auxiliary head, where there is one, and `_deployed` without; FLOPs are two per multiply-add."""

    network: str
    classes: int
    size: tuple[int, int]
    """Height and width of the image, a multiple of `stride`."""
    params: int
    params_deployed: int
    flops: int
    flops_deployed: int
    stride: int
    taps: tuple[Tap, ...]
    """In the order in which their modules end."""
    head_taps: tuple[str, ...]
    auxiliary: str | None
    weights: tuple[PretrainedWeights, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_network(network: NetworkSpec | str, classes: int, size: tuple[int, int], *, field: str = "") -> Inspection:
    """Inspect the network on one image of `size`, which grows to its stride. Raises SpecError."""
    spec = as_spec(network)
    if min(size) < SIDES[0] or max(size) > SIDES[1]:
        raise SpecError(
            f"An image of {size[0]} x {size[1]} is none to inspect a network on.",
            field="SIZE",
            hint=f"Give {SIDES[0]} to {SIDES[1]} for height and width.",
        )
    module = build_meta(spec, classes, field=field)
    size = padded(size, stride(spec))
    with Taps(module, [name for name, _ in module.named_modules() if name]) as taps:
        flops = flops_of(module, size)
        features = taps.all_features()
    auxiliary = aux_tap(module)
    return Inspection(
        network=str(spec),
        classes=classes,
        size=size,
        params=count_params(module),
        params_deployed=deployed_params(module),
        flops=flops,
        flops_deployed=flops_of(module, size),
        stride=stride(spec),
        taps=_described(features, size, default_taps(module)),
        head_taps=head_taps(module),
        auxiliary=auxiliary,
        weights=_pretrained(spec),
    )


def as_text(found: Inspection) -> str:
    """The inspection for people: counts, and the taps that are used unless a job names others."""
    taps = {tap.name: tap for tap in found.taps}
    without = " ({} without the auxiliary head)" if found.auxiliary else ""
    lines = [
        f"{found.network}, {found.classes} classes, an image of {found.size[0]} x {found.size[1]}",
        "",
        f"parameters    {found.params / 1e6:.2f} M" + without.format(f"{found.params_deployed / 1e6:.2f} M"),
        f"FLOPs         {found.flops / 1e9:.4g} G" + without.format(f"{found.flops_deployed / 1e9:.4g} G"),
        f"image sides   {'of any length' if found.stride == 1 else f'are padded to multiples of {found.stride}'}",
        f"pretrained    {', '.join(map(_weights_text, found.weights)) or 'none'}",
        "",
        "default taps",
        *(_tap_text(tap) for tap in found.taps if tap.default),
        "head taps",
        *(_tap_text(taps[name]) for name in found.head_taps),
        f"{len(taps)} taps in all; --json lists them.",
    ]
    return "\n".join(lines)


def _tap_text(tap: Tap) -> str:
    channels, height, width = tap.shape
    return f"  {tap.name:24} {channels:5} x {height} x {width}   1/{tap.stride}"


def _weights_text(weights: PretrainedWeights) -> str:
    licence = weights.licence or "licence unknown"
    return f"{weights.name} ({licence}{'' if weights.allowed else '; not allowed here'})"


def _described(features: dict[str, Tensor], size: tuple[int, int], defaults: tuple[str, ...]) -> tuple[Tap, ...]:
    return tuple(
        Tap(name, (channels, height, width), round(size[0] / height), name in defaults)
        for name, feature in features.items()
        for _, channels, height, width in [feature.shape]
    )


def _pretrained(spec: NetworkSpec) -> tuple[PretrainedWeights, ...]:
    if spec.name in DECODERS:
        from dsd_core.models.zoo import pretrained_sets

        licences = pretrained_sets(spec.encoder or "")
    else:
        names = BACKBONE_WEIGHTS if spec.name in TORCHVISION_NETWORKS else ()
        licences = dict.fromkeys(names)
    free = (None, *FREE)
    return tuple(PretrainedWeights(name, said, said in free or allowed_here()) for name, said in licences.items())
