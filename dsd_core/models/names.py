"""Which networks, encoders and options exist, and which pretrained weights may be used. Torch-free.

`encoders.txt` is written by `python -m dsd_core.models.encoder_list`; tests hold it and OPTIONS against the libraries.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from dsd_core.errors import SpecError, unknown
from dsd_core.models.sidecar import PREPROCESS, parse_preprocess, read_sidecar
from dsd_core.models.weights_header import outputs_in
from dsd_core.spec import DECODERS, NetworkSpec

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
    "espnet": ("p", "q", "image_in_skip"),
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

# PAN pools its deepest features, at 1/16, three times more.
STRIDES = dict.fromkeys(DECODERS, 32) | {"espnet": 8, "pan": 128}

_RESTRICTED_ENCODERS = {
    r"mit_b\d": "NVIDIA's Source Code License: not for commercial use",
    r"(tu-)?mobileone_.*": "Apple's sample code licence",
}
_RESTRICTED_WEIGHTS = dict.fromkeys(("ssl", "swsl", "instagram"), "CC BY-NC 4.0: not for commercial use")


def check_network(network: NetworkSpec, field: str) -> None:
    """Raise SpecError where the encoder or an option does not exist, or its pretrained weights may not be used."""
    if network.name in DECODERS:
        check_encoder(network, field)
    elif network.encoder_weights is not None:
        raise SpecError(
            f"Network {network.name!r} has no encoder to fetch weights for.",
            field=f"{field}/encoder_weights",
            hint="Leave encoder_weights out, or give a weights file.",
        )
    allowed = OPTIONS[network.name]
    for option in network.options:
        if option not in allowed:
            error = unknown(f"option of {network.name}", option, allowed, field=f"{field}/options/{option}")
            raise SpecError(error.message, field=error.field, hint=f"{network.name} takes {', '.join(allowed)}.")


def check_encoder(network: NetworkSpec, field: str) -> None:
    """Raise SpecError for an unknown encoder, or pretrained weights of one whose licence restricts their use."""
    encoder = network.encoder or ""
    model, _, tag = encoder.partition(".")
    known = encoders()
    if model not in known or (tag and not (model.startswith("tu-") and re.fullmatch(r"\w+", tag))):
        raise unknown("encoder", encoder, known, field=f"{field}/encoder")
    if network.encoder_weights is None:
        return
    reason = _RESTRICTED_WEIGHTS.get(network.encoder_weights)
    reason = reason or next((why for name, why in _RESTRICTED_ENCODERS.items() if re.fullmatch(name, model)), None)
    if reason is not None:
        raise restricted(encoder, network.encoder_weights, reason, field)


def restricted(encoder: str, weights: str, reason: str, field: str) -> SpecError:
    """The error for pretrained weights that this service does not hand on."""
    return SpecError(
        f"The weights {weights!r} of encoder {encoder!r} are under {reason}.",
        field=f"{field}/encoder_weights",
        hint="Leave encoder_weights out to start from random, or take another encoder.",
    )


@cache
def encoders() -> tuple[str, ...]:
    """Every encoder's name: those of segmentation-models-pytorch, and timm's with `tu-` before them."""
    text = resources.files("dsd_core.models").joinpath("encoders.txt").read_text(encoding="utf-8")
    return tuple(text.split())
