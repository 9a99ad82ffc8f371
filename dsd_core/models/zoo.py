"""Networks of segmentation-models-pytorch with any of its encoders and timm's."""

from __future__ import annotations

import warnings
from functools import reduce
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from dsd_core.errors import SpecError, WeightsError, unknown
from dsd_core.models.licences import FREE, refuse_restricted, restriction
from dsd_core.models.names import STRIDES
from dsd_core.network_spec import DECODERS, NetworkSpec


def build_decoder(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    """The network of `spec`, its logits at the size of its input. Raises SpecError and WeightsError."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.options.items()}
    if spec.encoder_weights is None:
        network = _construct(spec, spec.encoder, None, classes, options, field)
    else:
        network = _construct_pretrained(spec, classes, options, field)
    _match_input_size(network, spec, field)
    for name, module in network.named_modules():
        if isinstance(module, MergeBlock) and module.policy == "add":
            network.set_submodule(name, Sum())
    return network


class Sum(nn.Module):
    """The sum of several maps, one added to the other: a quarter of the time of smp's sum over a stack of them."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        return reduce(torch.add, maps)


def _construct(
    spec: NetworkSpec,
    encoder: str | None,
    weights: str | bool | None,
    classes: int,
    options: dict[str, Any],
    field: str,
) -> nn.Module:
    constructor = getattr(smp, DECODERS[spec.name])
    try:
        with warnings.catch_warnings():
            # smp calls its own `timm-` encoders deprecated, though it offers them.
            warnings.filterwarnings("ignore", message="`timm-` encoders", category=DeprecationWarning)
            return constructor(encoder_name=encoder, encoder_weights=weights, classes=classes, **options)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, AssertionError, IndexError) as error:
        given = f" with {spec.options}" if spec.options else ""
        raise SpecError(
            f"{spec}{given} cannot be built: {error}", field=field, hint="Take another encoder, or other options."
        ) from error


def _construct_pretrained(spec: NetworkSpec, classes: int, options: dict[str, Any], field: str) -> nn.Module:
    encoder, weights = _pretrained_source(spec, field)
    _construct(spec, spec.encoder, None, classes, options, field)  # so that what fails below is the download
    try:
        return _construct(spec, encoder, weights, classes, options, field)
    except (
        Exception
    ) as error:  # the hub's client, its HTTP library and the operating system each have their own classes
        raise WeightsError(
            f"The weights {spec.encoder_weights!r} of encoder {spec.encoder!r} could not be downloaded: {error}",
            field=f"{field}/encoder_weights",
            hint="Check the worker's network, or leave encoder_weights out to start from random.",
        ) from error


def _pretrained_source(spec: NetworkSpec, field: str) -> tuple[str, str | bool]:
    """Encoder name and weights as smp takes them. Raises SpecError for unknown or restricted ones."""
    encoder, weights = spec.encoder or "", spec.encoder_weights or ""
    known = pretrained_sets(encoder)
    if weights not in known:
        raise unknown(f"set of weights for {encoder}", weights, known, field=f"{field}/encoder_weights")
    licence = known[weights]
    if licence is not None and licence not in FREE:
        refuse_restricted(encoder, weights, licence, field)
    if not encoder.startswith("tu-"):
        return encoder, weights
    return (encoder if weights == "imagenet" else f"{encoder.partition('.')[0]}.{weights}"), True


def pretrained_sets(encoder: str) -> dict[str, str | None]:
    """Names of the encoder's pretrained weights, each with its licence where one is known.

    timm names sets of weights by a tag; `imagenet` is the one that the encoder's own name means.
    """
    if not encoder.startswith("tu-"):
        return {name: restriction(encoder, name) for name in smp_encoders[encoder]["pretrained_settings"]}
    name = encoder.removeprefix("tu-")
    model = name.partition(".")[0]
    tags = {full.partition(".")[2]: _timm_licence(full) for full in timm.list_pretrained(f"{model}.*")}
    return {"imagenet": _timm_licence(name), **tags} if tags else {}


def _timm_licence(name: str) -> str | None:
    config = timm.get_pretrained_cfg(name)
    said = config.license.lower() if config is not None and config.license else None
    return said or restriction(f"tu-{name}", "")


def _match_input_size(network: nn.Module, spec: NetworkSpec, field: str) -> None:
    """Set the head's up-sampling to what this encoder and depth need, by one small forward pass."""
    stride = STRIDES[spec.name]
    size = (max(64, stride), max(96, 2 * stride))  # not square, so that a transposed size shows
    try:
        factors = [given / got for given, got in zip(size, _probe(network, size).shape[-2:], strict=True)]
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise SpecError(
            f"{spec} does not run on an image of {size[0]} x {size[1]}: {error}",
            field=field,
            hint="Take an encoder that takes images of any size.",
        ) from error
    if factors[0] == factors[1] == 1:
        return
    head = network.get_submodule("segmentation_head")
    assert isinstance(head, nn.Sequential)
    factor = factors[0] * float(getattr(head[1], "scale_factor", 1))
    if factors[0] != factors[1] or factor < 1:
        raise SpecError(f"{spec} gives logits of another shape than its image.", field=field)
    head[1] = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)


def _probe(network: nn.Module, size: tuple[int, int]) -> Tensor:
    was_training = network.training
    device = next(network.parameters()).device
    with torch.no_grad():
        logits = network.eval()(torch.zeros(1, 3, *size, device=device))
    network.train(was_training)
    return logits
