"""Networks: build them by name, load their weights, tap their layers, count their cost.

`names`, `sidecar` and `weights_header` are torch-free; the functions offered here are fetched when they are first used,
so importing those three stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsd_core.models.networks import aux_tap, build, default_taps, head_taps, stride
    from dsd_core.models.weights import load_weights
    from dsd_core.models.weights_header import outputs_in

__all__ = ["aux_tap", "build", "default_taps", "head_taps", "load_weights", "outputs_in", "stride"]

_HOME = {
    "aux_tap": "networks",
    "build": "networks",
    "default_taps": "networks",
    "head_taps": "networks",
    "load_weights": "weights",
    "outputs_in": "weights_header",
    "stride": "networks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
