"""The losses: one file each, found by being here. `from dsd_core.distill.losses import kd` gives the pure function.

Importing this package does not import torch. LOSSES has the options of every loss by the name a job file uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from dsd_core.distill.loss import LossSpec

if TYPE_CHECKING:
    from dsd_core.distill.losses.attention_transfer import at
    from dsd_core.distill.losses.channel_wise import cwd
    from dsd_core.distill.losses.cross_entropy import ce, log_class_weights
    from dsd_core.distill.losses.cross_image import cirkd
    from dsd_core.distill.losses.dice import dice
    from dsd_core.distill.losses.double_similarity import (
        category_correlation,
        category_similarity,
        pixel_similarity,
        residual_attention,
    )
    from dsd_core.distill.losses.hints import fitnet
    from dsd_core.distill.losses.holistic import skd_holistic
    from dsd_core.distill.losses.intra_class import ifvd
    from dsd_core.distill.losses.logit_distillation import kd
    from dsd_core.distill.losses.pair_wise import skd_pairwise
    from dsd_core.distill.losses.relations import dist

_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
globals().update({name: getattr(module, name) for module in _MODULES for name in module.__all__})


def _kinds(of: type[LossSpec]) -> Iterator[type[LossSpec]]:
    for kind in of.__subclasses__():
        yield from _kinds(kind)
        if not kind.model_fields["loss"].is_required():
            yield kind


def _place(kind: type[LossSpec]) -> tuple[bool, str]:
    return kind.needs_teacher, kind.model_fields["loss"].default


LOSSES: dict[str, type[LossSpec]] = {
    kind.model_fields["loss"].default: kind for kind in sorted(_kinds(LossSpec), key=_place)
}

__all__ = [
    "LOSSES",
    "at",
    "category_correlation",
    "category_similarity",
    "ce",
    "cirkd",
    "cwd",
    "dice",
    "dist",
    "fitnet",
    "ifvd",
    "kd",
    "log_class_weights",
    "pixel_similarity",
    "residual_attention",
    "skd_holistic",
    "skd_pairwise",
]
