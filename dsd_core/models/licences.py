"""Licences of pretrained weights: which restrict their use, and whether the operator allows those. Torch-free."""

from __future__ import annotations

import os
import re

from dsd_core.errors import SpecError

ALLOW = "DSD_ALLOW_RESTRICTED_WEIGHTS"
_YES = ("1", "true", "yes", "on")

FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
_RESTRICTED_ENCODERS = {
    r"mit_b\d": "NVIDIA's Source Code License: not for commercial use",
    r"(tu-)?mobileone_.*": "Apple's sample code licence",
}
_RESTRICTED_WEIGHTS = dict.fromkeys(("ssl", "swsl", "instagram"), "CC BY-NC 4.0: not for commercial use")


def allowed_here() -> bool:
    """Whether this machine's operator allows weights whose licence restricts their use; a job cannot."""
    return os.environ.get(ALLOW, "").strip().lower() in _YES


def restriction(encoder: str, weights: str) -> str | None:
    """The licence that restricts these weights, by their names; None where the names tell of none."""
    model = encoder.partition(".")[0]
    by_encoder = (why for name, why in _RESTRICTED_ENCODERS.items() if re.fullmatch(name, model))
    return _RESTRICTED_WEIGHTS.get(weights) or next(by_encoder, None)


def refuse_restricted(encoder: str, weights: str, licence: str, field: str) -> None:
    """Raise SpecError for weights under a licence that restricts their use, unless the operator allows them."""
    if not allowed_here():
        raise SpecError(
            f"The weights {weights!r} of encoder {encoder!r} are under {licence}.",
            field=f"{field}/encoder_weights",
            hint="Leave encoder_weights out to start from random, or take another encoder. "
            f"Who runs the service may allow them with {ALLOW}=1.",
        )
