"""This host's copy of a run folder whose storage is a bucket: fetched before the child starts, kept while it works.

A token beside the files says whose copy is the newest. A host that holds it goes on from its own folder, which may be
ahead of the bucket; any other takes what the bucket has, and thereby the token. A checkpoint's manifest is stored last
and compared after fetching, so that one that is half there, or damaged, is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsd_core.errors import StorageError
from dsd_core.fault_points import fault_point
from jobs.storage import Bucket

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
PARTIAL = ".tmp"
TOKEN = "copy"
INPUTS = "inputs"  # files of other jobs that this one reads
NOT_KEPT = {TOKEN, INPUTS, "pulse"}
NOT_FETCHED = {TOKEN, CHECKPOINTS, "pictures", "student"}  # checkpoints are, one by one

Stamp = tuple[int, int]  # bytes, time of the last change in ns


class TakenOver(Exception):
    """Another host has the newest copy now."""


@dataclass
class RunCopy:
    """The folder of one job on this host, `folder`, and the same below `runs/JOB` of the bucket."""

    bucket: Bucket
    job_id: str
    folder: Path
    sent: dict[str, Stamp] = field(default_factory=dict)  # files that the bucket has as they are here
    ours: set[str] = field(default_factory=set)  # checkpoints in the bucket that we may delete from it

    def fetch(self, inputs: Sequence[tuple[str, str]] = ()) -> None:
        """Make the folder the newest copy there is, with `inputs`, files or folders of other jobs' runs, beside it.

        Raises StorageError; doing it again is harmless.
        """
        if not self.is_newest():
            self._take_over()
        self.ours = {checkpoint for name in self.bucket.files(self.job_id) if (checkpoint := _checkpoint_of(name))}
        for job_id, name in inputs:
            self.bucket.bring(job_id, name, self.folder / INPUTS / job_id)

    def is_newest(self) -> bool:
        """Whether this host has the token. Raises StorageError."""
        mine = self.folder / TOKEN
        return mine.exists() and mine.read_text() == self.bucket.note(self._token)

    def keep(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Bring the bucket up to date: checkpoints first, the newest of them before the others.

        Raises StorageError, and TakenOver where another host has the job or `ended` says that we have it no longer.
        """
        if not self.is_newest():
            raise TakenOver
        there = self.bucket.files(self.job_id)
        here = {name: path for name, path in _files(self.folder) if name.partition("/")[0] not in NOT_KEPT}
        checkpoints = _complete(here)
        for name in _in_order(here, checkpoints):
            if ended():
                raise TakenOver
            if name.endswith(MANIFEST):
                fault_point("copy.before_manifest")
            known = there.get(name)
            unchanged = name.startswith(f"{CHECKPOINTS}/") and known is not None and known.bytes == _size(here[name])
            if not unchanged:
                self._put(name, here[name])
        self.ours |= set(checkpoints)
        if checkpoints:
            self._drop([name for name in there if _checkpoint_of(name) in self.ours - set(checkpoints)])

    def delete(self) -> None:
        """Remove this host's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_over(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        names = self.bucket.files(self.job_id)
        for name in names:
            if name.partition("/")[0] not in NOT_FETCHED:
                self.bucket.get(self.job_id, name, self.folder / name)
        for checkpoint in _complete(names):
            self._fetch_checkpoint(checkpoint, [name for name in names if name.startswith(f"{checkpoint}/")])
        token = secrets.token_hex(8)
        (self.folder / TOKEN).write_text(token)
        self.bucket.put_note(self._token, token)

    @property
    def _token(self) -> str:
        return f"runs/{self.job_id}/{TOKEN}"

    def _put(self, name: str, path: Path) -> None:
        """Store a file unless it is as it was stored; one that the training process has deleted needs not be."""
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if self.sent.get(name) != stamp:
                self.bucket.put(self.job_id, name, path)
                self.sent[name] = stamp
        except (FileNotFoundError, StorageError):
            if path.exists():
                raise

    def _drop(self, names: list[str]) -> None:
        """Delete checkpoints that are no longer here, each manifest before what it vouches for."""
        self.bucket.remove(self.job_id, sorted(names, key=lambda name: (not name.endswith(MANIFEST), name)))

    def _fetch_checkpoint(self, checkpoint: str, names: list[str]) -> None:
        partial = self.folder / f"{checkpoint}{PARTIAL}"
        for name in names:
            self.bucket.get(self.job_id, name, partial / name.removeprefix(f"{checkpoint}/"))
        if damage := _damage(partial):
            shutil.rmtree(partial)
            self._say(f"{checkpoint} is damaged in {self.bucket.place} ({damage}); it is passed over.")
            return
        partial.rename(self.folder / checkpoint)

    def _say(self, message: str) -> None:
        log.warning("copy job=%s: %s", self.job_id, message)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{message}\n")


def sweep(bucket: Bucket, runs: Path, has_ended: Callable[[str], bool]) -> None:
    """Delete this host's copies of jobs that have ended, once the bucket has what they hold.

    A worker that was killed leaves them, and one that could not reach the bucket in time.
    """
    for folder in runs.iterdir() if runs.is_dir() else ():
        if not has_ended(folder.name):
            continue
        copy = RunCopy(bucket, folder.name, folder)
        try:
            copy.keep()
        except StorageError:
            continue
        except TakenOver:
            log.info("copy.superseded folder=%s", folder)
        copy.delete()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder by its name, but for half-written ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]
        for path in (Path(parent, name) for name in names if not name.endswith(PARTIAL)):
            yield path.relative_to(folder).as_posix(), path


def _complete(names: Iterable[str]) -> list[str]:
    """The checkpoints that have a manifest, the newest first."""
    found = {_checkpoint_of(name) for name in names if name.endswith(f"/{MANIFEST}")}
    return sorted((checkpoint for checkpoint in found if checkpoint), reverse=True)


def _checkpoint_of(name: str) -> str | None:
    """`checkpoints/00001200` for a file in it."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == CHECKPOINTS and len(parts) > 2 else None


def _in_order(here: dict[str, Path], checkpoints: list[str]) -> Iterator[str]:
    """The files of each complete checkpoint, its manifest last; then all files outside of checkpoints."""
    for checkpoint in checkpoints:
        names = [name for name in here if name.startswith(f"{checkpoint}/")]
        yield from sorted(names, key=lambda name: (name.endswith(MANIFEST), name))
    yield from (name for name in here if not name.startswith(f"{CHECKPOINTS}/"))


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest; None where it is whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        for name, entry in manifest.items():
            with open(checkpoint / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None
