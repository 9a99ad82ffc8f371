"""Checkpoints: a folder each, complete or absent, never half.

    checkpoints/00001200-3/     step 1200 of the run, written by the attempt with fence 3
        tensors.safetensors     student, optimiser, average, best weights so far, random generators
        state.json              leg, step, scores so far, seconds, environment
        manifest.json           size and sha256 of the other two

Write order: files into `NAME.tmp`, fsync each, the manifest last, fsync the folder, rename, fsync the parent. So a
crash at any instruction leaves the old set or the new one. A checkpoint that does not match its manifest is passed over
for the one before. Two attempts never write the same name, for each has a fence of its own.

The last few are kept. Each holds the best weights so far beside the newest, so that they outlive the checkpoint they
came from.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from dsd_core.disk import Disk, storage_error
from dsd_core.errors import StorageError
from dsd_core.fault_points import fault_point

KEPT = 3
SPARE_BYTES = 32 << 20
"""Of the disk, left to the events, the log and the exported student."""
RETRY_S = 30.0
"""The least time from a write that failed to the next try."""
DISK = Disk()
PARTIAL = ".tmp"


@dataclass(frozen=True)
class Saved:
    path: Path
    bytes: int
    sha256: str  # of the manifest


class Writer:
    """Writes the checkpoints of one attempt, every `every_s` seconds, and bears with a disk that fails once.

    After a failure training goes on, and a later try may find the disk well again; two failures in a row are an error.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_s: float,
        kept: int = KEPT,
        fence: int = 0,
        warn: Callable[[str], None],
        retry_s: float = RETRY_S,
        disk: Disk = DISK,
    ) -> None:
        self._folder = folder
        self._every_s = every_s
        self._kept = kept
        self._fence = fence
        self._warn = warn
        self._retry_s = retry_s
        self._disk = disk
        self._failed = False
        self._tried_at = time.monotonic()

    def is_due(self) -> bool:
        wait_s = max(self._every_s, self._retry_s) if self._failed else self._every_s
        return time.monotonic() - self._tried_at >= wait_s

    def write(
        self, total_step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, needed: bool = False
    ) -> Saved | None:
        """The checkpoint; None where it could not be written, after a warning. Raises StorageError at the second
        failure in a row, and at the first of one that is `needed`."""
        try:
            saved = save(self._folder, total_step, tensors, state, fence=self._fence, kept=self._kept, disk=self._disk)
        except StorageError as error:
            if needed or self._failed:
                raise
            self._failed = True
            self._warn(f"There is no checkpoint of step {total_step}: {error.message} Training goes on; trying later.")
            return None
        finally:
            self._tried_at = time.monotonic()
        self._failed = False
        return saved


def save(
    folder: Path,
    total_step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    fence: int = 0,
    kept: int = KEPT,
    disk: Disk = DISK,
) -> Saved:
    """Write the checkpoint of `total_step` and drop older ones of this and earlier fences, but for the last `kept`.

    Raises StorageError; the older ones then stay.
    """
    final = folder / f"{total_step:08d}-{fence}"
    partial = final.with_suffix(PARTIAL)
    contents = {
        "tensors.safetensors": dump_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()}),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    manifest, size = _manifest(contents), sum(map(len, contents.values()))
    try:
        if not folder.is_dir():
            disk.make_folder(folder)
            disk.sync_folder(folder.parent)
        _refuse_little_space(disk.free_bytes(folder), size, folder)
        disk.remove(partial)
        disk.make_folder(partial)
        for name, data in (*contents.items(), ("manifest.json", manifest)):
            disk.write(partial / name, data)
            fault_point(f"checkpoint.after_{name.partition('.')[0]}")
        disk.sync_folder(partial)
        fault_point("checkpoint.before_rename")
        if final.exists():  # damaged: a run arrives twice at a step only where the checkpoint of it was passed over
            disk.remove(final)
        disk.rename(partial, final)
        fault_point("checkpoint.after_rename")
        disk.sync_folder(folder)
    except OSError as error:
        disk.remove(partial)
        raise storage_error(error, folder) from error
    fault_point("checkpoint.before_prune")
    for old in _up_to(folder, total_step, fence)[:-kept]:
        disk.remove(old)
    fault_point("checkpoint.after_prune")
    return Saved(final, size, hashlib.sha256(manifest).hexdigest())


def load_newest(folder: Path, note: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is whole; each damaged one is told to `note`. None where there
    is none."""
    for _, path in reversed(_complete(folder)):
        try:
            return _load(path)
        except (OSError, ValueError, SafetensorError) as error:
            note(f"Checkpoint {path.name} is damaged ({error}); taking the one before.")
    return None


def remove_partial(folder: Path, fence: int) -> None:
    """Remove what writers of this fence and of earlier ones left half done. Nobody writes under them any more."""
    for path in folder.glob(f"[0-9]*{PARTIAL}"):
        place = _place(path.with_suffix(""))
        if place is not None and place[1] <= fence:
            DISK.remove(path)


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
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for index, (parameter, group) in enumerate(parameters):
        start = f"{prefix}.{index}."
        for key, value in tensors.items():
            if key.startswith(start):
                like = value.shape == parameter.shape
                beside = parameter.device if group.get("fused") else value.device  # a fused step counts where it steps
                optimizer.state[parameter][key.removeprefix(start)] = (
                    torch.empty_like(parameter).copy_(value) if like else value.clone().to(beside)
                )


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def stripped(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


_NAME = re.compile(r"(\d+)(?:-(\d+))?")


def _place(path: Path) -> tuple[int, int] | None:
    """Step and fence of a checkpoint by its name; `00001200`, as names were once, has fence 0. None: it is none."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _complete(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """Place and path of the checkpoints that a writer finished, oldest first."""
    placed = ((_place(path), path) for path in folder.glob("[0-9]*"))
    return sorted((place, path) for place, path in placed if place is not None)


def _up_to(folder: Path, step: int, fence: int) -> list[Path]:
    """Checkpoints up to a step and of no later fence. Those of later steps are damaged, or another attempt's."""
    return [path for (at, by), path in _complete(folder) if at <= step and by <= fence]


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = (path / "manifest.json").read_bytes()
    contents = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.json")}
    if _manifest(contents) != manifest:
        raise ValueError("its files do not match manifest.json")
    return load_tensors(contents["tensors.safetensors"]), json.loads(contents["state.json"])


def _manifest(contents: dict[str, bytes]) -> bytes:
    return json.dumps(
        {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    ).encode()


def _refuse_little_space(free_bytes: int, size: int, folder: Path) -> None:
    """Raise StorageError unless a checkpoint fits twice, so that one always can be written beside the older ones."""
    wanted = 2 * size + SPARE_BYTES
    if free_bytes < wanted:
        raise StorageError(
            f"The disk that holds {folder} is nearly full: {free_bytes / 1e6:.0f} MB are free, and a checkpoint wants"
            f" {wanted / 1e6:.0f} MB.",
            hint="Free some space and start the job again; it resumes.",
        )
