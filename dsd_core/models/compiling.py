"""torch.compile, of a network in place: names of modules and tensors stay, and it can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from dsd_core.errors import SpecError

Compile = Literal["off", "default", "cuda_graphs"]


@contextmanager
def compiled(network: nn.Module, how: Compile) -> Iterator[None]:
    """Run the network compiled inside `with`; it is compiled at its first pass, with the hooks it has then."""
    if how == "off":
        yield
        return
    network.compile(mode="reduce-overhead" if how == "cuda_graphs" else "default")
    try:
        yield
    finally:
        network.__dict__.pop("_compiled_call_impl", None)


def eagerly(how: Compile) -> AbstractContextManager[object]:
    """Run what is compiled as it was written: a graph goes backward once, and other sizes and modes would be compiled
    anew."""
    return nullcontext() if how == "off" else torch.compiler.set_stance("force_eager")


def refuse_without_compiler(how: Compile, device: torch.device) -> None:
    """Raise SpecError where torch.compile cannot do that here; compiles a line to find out, which takes seconds."""
    if how == "off":
        return
    if how == "cuda_graphs" and device.type != "cuda":
        raise SpecError(
            "CUDA graphs need a CUDA device, and there is none here.",
            field="/train/compile",
            hint="Set train.compile to default, which compiles for the processor, or to off.",
        )
    try:
        torch.compile(_a_line)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a compiler, its absence or its headers may come to
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SpecError(
            f"torch.compile does not work here: {said}",
            field="/train/compile",
            hint="It needs a C++ compiler and the headers of Python, and on a GPU triton. Install them, or set "
            "train.compile to off.",
        ) from error


def _a_line(x: Tensor) -> Tensor:
    return (2 * x + 1).sin()
