"""The child of `pickles.convert`: it gives up its rights, then reads a checkpoint and writes its tensors.

`weights_only=True` admits tensors and plain containers only, and there is no second try without it. The limits stand
behind it: a file that gets through all the same can neither fill memory or disk nor start a program.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

STATE_AT = ("state_dict", "model_state_dict", "model_state", "model", "network")
SPARE_BYTES = 1 << 30
CPU_S = 300
CLONE_NEWNET = 0x40000000


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    give_up_rights(source, target)
    try:
        tensors = state_dict_in(torch.load(source, map_location="cpu", weights_only=True))
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target)
    except Exception as error:  # torch, pickle, zip and the limits each have their own classes
        print(reason(error), file=sys.stderr)
        sys.exit(1)


def reason(error: Exception) -> str:
    """One line; torch's own, for a pickle of other things than tensors, would advise to read it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        return f"it is no pickle of tensors alone{f' but asks for {named[1]}' if named else ''}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(".: ")


def give_up_rights(source: Path, target: Path) -> None:
    """Limit memory, time, size of files and processes of this process, and leave the network where that is allowed."""
    os.chdir(target.parent)
    size = source.stat().st_size
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 20
    for limit, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + 4 * size + SPARE_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(CLONE_NEWNET)  # fails without privilege; the other limits stand


def state_dict_in(loaded: Any) -> dict[str, Tensor]:
    """The tensors by name: the object itself, or what is under one of STATE_AT in it. Raises ValueError."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in STATE_AT if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    named = loaded.items() if isinstance(loaded, Mapping) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"it holds a {type(loaded).__name__} without named tensors, no state dict")
    if odd := [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]:
        raise ValueError(f"{odd[0]} is sparse or quantised")
    return tensors


if __name__ == "__main__":
    main()
