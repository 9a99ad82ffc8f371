"""Taps: the outputs of named modules, captured while the network runs.

A name is a module's name in the network, as `named_modules` gives it; `name:3` is item 3 of a module returning a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dsd_core.errors import SpecError, unknown

Captured = tuple[Any, list[int] | None]  # what a module returned, and how often each tensor had been altered by then


class _Reached(Exception):
    """Every tap has fired; the rest of the forward pass is not needed."""


class Taps:
    """Capture what the modules of `names` return in each forward pass inside `with`.

    Raises SpecError for a name that the network does not have. Wrappers of DDP and torch.compile are looked through.
    What torch.compile made before `with` has no hooks in it, so a compiled network runs inside `with` first.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], *, field: str = "/student/taps") -> None:
        self.names = tuple(names)
        self._network = unwrap(network)
        self._field = field
        self._points = {name: _point(self._network, name, field) for name in self.names}
        self._captured: dict[str, list[Captured]] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._hooks.append(self._network.register_forward_pre_hook(self._forget))
        for module_name, module in zip(self._module_names, self.modules, strict=True):
            self._hooks.append(module.register_forward_hook(self._hook(module_name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._captured.clear()

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose outputs are captured."""
        return [self._network.get_submodule(module_name) for module_name in self._module_names]

    def features(self) -> list[Tensor]:
        """The features NCHW of the last forward pass, in the order of the names; they are handed over and forgotten.

        Raises SpecError where a tap did not run or ran twice, gave no NCHW tensor, or was altered in place afterwards.
        """
        captured, self._captured = self._captured, {}
        points = [(name, *self._points[name]) for name in self.names]
        return [self._feature(name, item, captured.get(module_name, [])) for name, module_name, item in points]

    def all_features(self) -> dict[str, Tensor]:
        """As `features`, by name, of each module and each item of a list; what cannot be tapped is left out.

        The order is that in which the modules ended.
        """
        captured, self._captured = self._captured, {}
        found = {}
        for name, item, passes in _every_point(captured):
            with suppress(SpecError):
                found[name] = self._feature(name, item, passes)
        return found

    @property
    def _module_names(self) -> list[str]:
        return list(dict.fromkeys(module_name for module_name, _ in self._points.values()))

    def _forget(self, module: nn.Module, inputs: Any) -> None:
        self._captured.clear()

    def _hook(self, module_name: str) -> Callable[[nn.Module, Any, Any], None]:
        # torch.compile traces this without a break, which isinstance with `list | tuple` and the questions that are
        # not asked while compiling would make; `features` judges.
        def capture(module: nn.Module, inputs: Any, output: Any) -> None:
            compiling = torch.compiler.is_compiling()
            if not compiling and torch.is_inference_mode_enabled():
                return  # the network is being scored, and nobody will ask for features
            outputs = output if isinstance(output, (list, tuple)) else [output]
            versions = None if compiling else [_version(tensor) for tensor in outputs]
            self._captured.setdefault(module_name, []).append((output, versions))

        return capture

    def _feature(self, name: str, item: int | None, captured: list[Captured]) -> Tensor:
        if len(captured) != 1:
            how = "ran more than once" if captured else "did not run"
            raise self._error(name, f"{how} in the forward pass.", "Tap a module that runs once in each pass.")
        output, versions = captured[0]
        several = isinstance(output, list | tuple)
        if several and item is None:
            some = ", ".join(f"{name}:{i}" for i in range(len(output))[:8])
            raise self._error(name, f"returns {len(output)} items.", f"Tap one of {some}.")
        if item is not None and not (several and item < len(output)):
            raise self._error(name, "asks for an item that its module does not return.", "Tap the module itself.")
        tensor = output if item is None else output[item]
        if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.shape[1] == 0:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise self._error(name, f"gives {shape}, not features NCHW.", "Tap a convolutional stage.")
        if versions is not None and versions[item or 0] != tensor._version:
            raise self._error(name, "was altered in place after it ran.", "Tap the module after it instead.")
        return tensor

    def _error(self, name: str, message: str, hint: str) -> SpecError:
        return SpecError(f"The tap {name!r} {message}", field=self._field, hint=hint)


def run_to_last(run: Callable[[], object], taps: Iterable[Taps]) -> None:
    """Call `run`, a forward pass of the network that all of `taps` are in, and leave it as soon as each tapped module
    has ended; `features` then gives what a whole pass would.

    What `features` refuses of a whole pass is not seen here: a tapped module that would run again, or be altered in
    place, after the last. Not for networks that torch.compile runs, where nothing can be left.
    """
    waiting = {module for tap in taps for module in tap.modules}

    def ended(module: nn.Module, inputs: Any, output: Any) -> None:
        waiting.discard(module)
        if not waiting:
            raise _Reached

    # Hooks run in the order they were registered in: these after those that capture.
    hooks = [module.register_forward_hook(ended) for module in tuple(waiting)]
    try:
        with suppress(_Reached):
            run()
    finally:
        for hook in hooks:
            hook.remove()


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside wrappers of torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _point(network: nn.Module, name: str, field: str) -> tuple[str, int | None]:
    """Module name and item that the tap's name stands for. Raises SpecError where there is no such module."""
    if name in (renamed := getattr(network, "tap_modules", {})):  # such as the tensors of an ONNX graph
        return renamed[name], None
    match = re.fullmatch(r"(.+):(\d+)", name)
    module_name, item = (match[1], int(match[2])) if match else (name, None)
    modules = {known for known, _ in network.named_modules() if known}
    if module_name not in modules:
        raise unknown("module to tap", module_name, modules, field=field)
    return module_name, item


def _every_point(captured: dict[str, list[Captured]]) -> Iterator[tuple[str, int | None, list[Captured]]]:
    for name, passes in captured.items():
        output, _ = passes[0]
        if isinstance(output, list | tuple):
            yield from ((f"{name}:{item}", item, passes) for item in range(len(output)))
        else:
            yield name, None, passes


def _version(output: Any) -> int:
    return output._version if isinstance(output, Tensor) else 0
