"""Taps: the outputs of named modules, captured while the network runs.

A name is a module's name in the network, as `named_modules` gives it; `name:3` is item 3 of a module returning a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsd_core.errors import SpecError, unknown


class Taps:
    """Capture what the modules of `names` return, in that order, in each forward pass inside `with`.

    Raises SpecError for a name that the network does not have. Wrappers of DDP and torch.compile are looked through.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], *, field: str = "/student/taps") -> None:
        self.names = tuple(names)
        self._network = unwrap(network)
        self._field = field
        self._items = _items_by_module(self._network, self.names, field)
        self._captured: dict[str, tuple[Tensor, int]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._hooks.append(self._network.register_forward_pre_hook(self._forget))
        for module_name, items in self._items.items():
            module = self._network.get_submodule(module_name)
            self._hooks.append(module.register_forward_hook(self._hook(module_name, items)))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._captured.clear()

    def features(self) -> list[Tensor]:
        """The features NCHW of the last forward pass, in the order of the names; they are handed over and forgotten.

        Raises SpecError where a tap did not run, or where its tensor was altered in place after it was captured.
        """
        captured, self._captured = self._captured, {}
        for name in self.names:
            if name not in captured:
                raise self._error(
                    name, "did not run in the forward pass.", "Tap a module that every forward pass uses."
                )
            tensor, version = captured[name]
            if tensor._version != version:
                raise self._error(
                    name, "was altered by an in-place operation after it ran.", "Tap the module after it instead."
                )
        return [captured[name][0] for name in self.names]

    def _forget(self, module: nn.Module, inputs: Any) -> None:
        self._captured.clear()

    def _hook(self, module_name: str, items: dict[str, int | None]) -> Callable[[nn.Module, Any, Any], None]:
        def capture(module: nn.Module, inputs: Any, output: Any) -> None:
            for name, item in items.items():
                if name in self._captured:
                    raise self._error(name, "ran twice in one forward pass.", "Tap a module that is used once.")
                tensor = self._feature(name, output, item)
                self._captured[name] = (tensor, tensor._version)

        return capture

    def _feature(self, name: str, output: Any, item: int | None) -> Tensor:
        if item is None and isinstance(output, list | tuple):
            some = ", ".join(f"{name}:{i}" for i in range(len(output))[:8])
            raise self._error(name, f"returns {len(output)} items.", f"Tap one of {some}.")
        if item is not None:
            if not isinstance(output, list | tuple) or item >= len(output):
                raise self._error(name, "asks for an item that its module does not return.", "Tap the module itself.")
            output = output[item]
        if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] == 0:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise self._error(name, f"gives {shape}, not features NCHW.", "Tap a convolutional stage.")
        return output

    def _error(self, name: str, message: str, hint: str) -> SpecError:
        return SpecError(f"The tap {name!r} {message}", field=self._field, hint=hint)


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside wrappers of torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _items_by_module(network: nn.Module, names: tuple[str, ...], field: str) -> dict[str, dict[str, int | None]]:
    """For each tapped module, its taps and the item of its output that each takes."""
    modules = {name for name, _ in network.named_modules() if name}
    found: dict[str, dict[str, int | None]] = {}
    for name in names:
        module_name, item = _split(name)
        if module_name not in modules:
            raise unknown("module to tap", module_name, modules, field=field)
        found.setdefault(module_name, {})[name] = item
    return found


def _split(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+):(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)
