"""A retry goes on from the checkpoints of the job it is a retry of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session

from dsd_core.errors import StorageError
from jobs import store

PARTIAL = ".tmp"


def forerunners(s: Session, claim: store.Claim) -> list[str]:
    """The jobs this one is a retry of, the nearest first: one that never started left nothing to go on from."""
    found: list[str] = []
    job_id = claim.retry_of
    while job_id is not None:
        found.append(job_id)
        row = store.get(s, job_id)
        job_id = None if row is None else row.retry_of
    return found


def inherit(folder: Path, others: Iterable[Path]) -> None:
    """Give a run folder without checkpoints those of the first of these folders of checkpoints that has some.

    They become links to the same bytes, which nobody changes: either job may delete its own. Each appears whole, and
    as the work of fence 0, so that the attempts of this job count as later ones. Raises StorageError.
    """
    mine = folder / "checkpoints"
    if _checkpoints(mine):
        return
    theirs = next((found for other in others if (found := _checkpoints(other))), {})
    try:
        for name, path in theirs.items():
            partial = mine / f"{name}{PARTIAL}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(path, partial, copy_function=_link_or_copy)
            partial.rename(mine / name)
    except (OSError, shutil.Error) as error:
        raise StorageError(f"The checkpoints of the job before cannot be taken over into {mine}: {error}") from error


def _checkpoints(folder: Path) -> dict[str, Path]:
    """Complete ones by step and fence 0; of several attempts at a step the last."""
    found = sorted(path for path in folder.glob("[0-9]*") if path.suffix != PARTIAL) if folder.is_dir() else []
    return {_of_fence_0(path.name): path for path in found}


def _of_fence_0(name: str) -> str:
    step, fenced, _ = name.partition("-")
    return f"{step}-0" if fenced else step


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
