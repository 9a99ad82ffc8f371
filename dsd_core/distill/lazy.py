"""torch, fetched when it is first used.

A loss is one file: its options, which the torch-free side reads, and its formula, which needs torch. With this, the
file is imported by both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F

    from dsd_core.distill import ops as ops
else:

    class _Lazy:
        """The module of this name, as soon as one of its attributes is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")
    ops = _Lazy("dsd_core.distill.ops")

__all__ = ["F", "ops", "torch"]
