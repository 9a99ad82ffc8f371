"""Which networks, encoders and options exist, and which pretrained weights may be used. Torch-free.

`encoders.txt` is written by `python -m dsd_core.models.encoder_list`; tests hold it and OPTIONS against the libraries.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from dsd_core.errors import SpecError, unknown
from dsd_core.models.licences import refuse_restricted, restriction
from dsd_core.models.sidecar import PREPROCESS, parse_preprocess, read_sidecar
from dsd_core.models.weights_header import outputs_in
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS, NetworkSpec

__all__ = [
    "OPTIONS",
    "PREPROCESS",
    "STRIDES",
    "check_network",
    "encoders",
    "outputs_in",
    "parse_preprocess",
    "read_sidecar",
]

_UNET = ("encoder_depth", "decoder_use_norm", "decoder_channels", "decoder_attention_type", "decoder_interpolation")
_FPN = ("decoder_pyramid_channels", "decoder_segmentation_channels", "decoder_merge_policy", "decoder_dropout")
_ATROUS = ("decoder_channels", "decoder_atrous_rates", "decoder_aspp_separable", "decoder_aspp_dropout")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OWN_NETWORKS, ()),
    "espnet": ("p", "q", "image_in_skip"),
    "espnet_c": ("p", "q"),
    **dict.fromkeys(TORCHVISION_NETWORKS, ("aux_loss",)),
    "lraspp_mobilenet_v3_large": (),
    "unet": _UNET,
    "unetplusplus": _UNET,
    "manet": ("encoder_depth", "decoder_use_norm", "decoder_channels", "decoder_pab_channels", "decoder_interpolation"),
    "linknet": ("encoder_depth", "decoder_use_norm"),
    "fpn": ("encoder_depth", *_FPN, "decoder_interpolation"),
    "pspnet": ("encoder_depth", "psp_out_channels", "decoder_use_norm", "psp_dropout"),
    "deeplabv3": ("encoder_depth", "encoder_output_stride", *_ATROUS),
    "deeplabv3plus": ("encoder_depth", "encoder_output_stride", *_ATROUS),
    "pan": ("encoder_depth", "encoder_output_stride", "decoder_channels", "decoder_interpolation"),
    "upernet": ("encoder_depth", "decoder_channels", "decoder_use_norm"),
    "segformer": ("encoder_depth", "decoder_segmentation_channels"),
}

# PAN pools its deepest features, at 1/16, three times more; torchvision's networks take any size.
STRIDES = (
    dict.fromkeys(OWN_NETWORKS, 8) | dict.fromkeys(TORCHVISION_NETWORKS, 1) | dict.fromkeys(DECODERS, 32) | {"pan": 128}
)
BACKBONE_WEIGHTS = ("imagenet",)  # of torchvision's networks


def check_network(network: NetworkSpec, field: str) -> None:
    """Raise SpecError where the encoder or an option does not exist, or its pretrained weights may not be used."""
    if network.name in DECODERS:
        check_encoder(network, field)
    elif network.encoder_weights is not None:
        _check_backbone_weights(network, field)
    allowed = OPTIONS[network.name]
    for option in network.options:
        if option not in allowed:
            error = unknown(f"option of {network.name}", option, allowed, field=f"{field}/options/{option}")
            takes = ", ".join(allowed) or "no options"
            raise SpecError(error.message, field=error.field, hint=f"{network.name} takes {takes}.")


def _check_backbone_weights(network: NetworkSpec, field: str) -> None:
    at = f"{field}/encoder_weights"
    if network.name not in TORCHVISION_NETWORKS:
        raise SpecError(
            f"Network {network.name!r} has no encoder to fetch weights for.",
            field=at,
            hint="Leave encoder_weights out, or give a weights file.",
        )
    if network.encoder_weights not in BACKBONE_WEIGHTS:
        raise unknown(f"set of weights for {network.name}", str(network.encoder_weights), BACKBONE_WEIGHTS, field=at)


def check_encoder(network: NetworkSpec, field: str) -> None:
    """Raise SpecError for an unknown encoder, or pretrained weights of one whose licence restricts their use."""
    encoder = network.encoder or ""
    model, _, tag = encoder.partition(".")
    known = encoders()
    if model not in known or (tag and not (model.startswith("tu-") and re.fullmatch(r"\w+", tag))):
        raise unknown("encoder", encoder, known, field=f"{field}/encoder")
    if network.encoder_weights is None:
        return
    licence = restriction(encoder, network.encoder_weights)
    if licence is not None:
        refuse_restricted(encoder, network.encoder_weights, licence, field)


@cache
def encoders() -> tuple[str, ...]:
    """Every encoder's name: those of segmentation-models-pytorch, and timm's with `tu-` before them."""
    text = resources.files("dsd_core.models").joinpath("encoders.txt").read_text(encoding="utf-8")
    return tuple(text.split())
