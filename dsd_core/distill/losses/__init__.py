"""The losses: one file each, found by being here. `from dsd_core.distill.losses import kd` gives the pure function.

Importing this package does not import torch. LOSSES has the options of every loss by the name a job file uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from dsd_core.distill.loss import LossSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    def __getattr__(function: str) -> Callable[..., Tensor]: ...


_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
globals().update({name: getattr(module, name) for module in _MODULES for name in module.__all__})


def _kinds(of: Any) -> Iterator[type[LossSpec]]:
    for kind in of.__subclasses__():
        yield from _kinds(kind)
        if not kind.model_fields["loss"].is_required():
            yield kind


def _place(kind: type[LossSpec]) -> tuple[bool, str]:
    return kind.needs_teacher, kind.model_fields["loss"].default


LOSSES: dict[str, type[LossSpec]] = {
    kind.model_fields["loss"].default: kind for kind in sorted(_kinds(LossSpec), key=_place)
}
