"""Checkpoints: a folder each, complete or absent, never half.

    checkpoints/00001200/   tensors.safetensors   student, optimiser, average, random generators
                            state.json            phase, step, scores so far, seconds
                            manifest.json         size and sha256 of the other two

Write order: files into `NAME.tmp`, fsync each, the manifest last, fsync the folder, rename, fsync the parent. So a
crash at any instruction leaves the old set or the new one. A checkpoint whose hashes do not match is passed over for
the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from dsd_core.errors import StorageError

KEPT = 2


@dataclass(frozen=True)
class Saved:
    path: Path
    bytes: int
    sha256: str  # of the manifest


def save(folder: Path, total_step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Saved:
    """Write the checkpoint of `total_step` and drop all but the newest two. Raises StorageError; the older ones then
    stay."""
    final = folder / f"{total_step:08d}"
    partial = final.with_suffix(".tmp")
    contents = {
        "tensors.safetensors": dump_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()}),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    manifest = json.dumps(
        {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    ).encode()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in (*contents.items(), ("manifest.json", manifest)):
            _write(partial / name, data)
        _sync_folder(partial)
        if final.exists():  # a run that resumed before this step arrives here again, with the same contents
            shutil.rmtree(final)
        partial.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise storage_error(error, folder) from error
    for old in sorted(_complete(folder))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return Saved(final, sum(map(len, contents.values())), hashlib.sha256(manifest).hexdigest())


def load_newest(folder: Path, note: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is whole; each damaged one is told to `note`. None where there
    is none."""
    for path in sorted(_complete(folder), reverse=True):
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            note(f"Checkpoint {path.name} is damaged ({error}); taking the one before.")
    return None


UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


def storage_error(error: OSError, where: Path) -> StorageError:
    """What an operating system's error at writing below `where` means to a user."""
    if error.errno == errno.ENOSPC:
        return StorageError(
            f"The disk that holds {where} is full.", hint="Free some space and start the job again; it resumes."
        )
    return StorageError(
        f"{where} cannot be written: {error.strerror or error}.", hint="Check the folder's permissions."
    )


def flatten_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as `PREFIX.INDEX.NAME`; its hyperparameters come from the spec and are not state."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `flatten_optimizer` took, in each parameter's own memory layout."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        start = f"{prefix}.{index}."
        for key, value in tensors.items():
            if key.startswith(start):
                like = value.shape == parameter.shape
                optimizer.state[parameter][key.removeprefix(start)] = (
                    torch.empty_like(parameter).copy_(value) if like else value.clone()
                )


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def stripped(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def _complete(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("[0-9]*") if path.suffix != ".tmp") if folder.exists() else iter(())


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    contents = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.json")}
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != manifest[name]["sha256"]:
            raise ValueError(f"{name} does not match its sha256")
    return load_tensors(contents["tensors.safetensors"]), json.loads(contents["state.json"])


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
