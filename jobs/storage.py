"""Where run folders are kept for every host to see: a folder, or a bucket of an S3-compatible server.

    runs/JOB/    spec.json, events.jsonl, log.txt, checkpoints/, pictures/, student/

A folder is written in place. With a bucket every host works in a folder of its own (`Settings.run_dir`), and the worker
copies (`worker.run_copy`). Objects of a bucket appear whole or not at all. Names are relative to a job's run folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dsd_core.errors import StorageError
from dsd_core.signals.store import Store
from jobs.settings import Settings

CHUNK = 1024 * 1024  # bytes that a download takes of a file at once: each takes a turn of a thread
BLOCK = 4 * 1024 * 1024  # bytes of one request to a bucket
CONNECT_S = 5
SILENCE_S = 30


@dataclass(frozen=True)
class Stored:
    """A file as it was found: what is appended later is not read."""

    size: int
    read: Callable[[int, int], Iterator[bytes]]
    """Bytes from the first argument up to the second. Raises EOFError where the file has become shorter."""


class Entry(NamedTuple):
    """A file of a run folder."""

    bytes: int
    changed_at: datetime


Runs = dict[str, dict[str, Entry]]
"""Files by name, by job."""


class Folder:
    """A folder that every host sees."""

    def __init__(self, root: Path) -> None:
        self.place = str(root)
        self._root = root

    def file(self, job_id: str, name: str) -> Stored | None:
        """None where there is no regular file of this name within the run folder; links are not followed."""
        folder = self._run(job_id)
        path = folder / name
        try:
            found = path.lstat()
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError):
            return None
        if not (inside and stat.S_ISREG(found.st_mode)):
            return None
        return Stored(found.st_size, lambda first, end: _read(path, first, end))

    @contextmanager
    def borrowed(self, job_id: str, name: str) -> Iterator[Path | None]:
        """A file or folder of a run, to read; None where there is none."""
        path = self._run(job_id) / name
        yield path if path.exists() else None

    def runs(self) -> Runs:
        """Every file there is."""
        folders = self._run("").iterdir() if self._run("").is_dir() else ()
        return {folder.name: _files(folder) for folder in folders if folder.is_dir() and not folder.is_symlink()}

    def remove(self, job_id: str, names: Iterable[str]) -> None:
        """Delete these files, and the folders that this leaves empty. What is gone already is no error."""
        folder = self._run(job_id)
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for path, _, _ in os.walk(folder, topdown=False):
            _remove_empty(Path(path))

    def note(self, name: str) -> str | None:
        """A small text that was put beside the run folders."""
        path = self._root / name
        return path.read_text(encoding="utf-8") if path.exists() else None

    def put_note(self, name: str, text: str) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / name).write_text(text, encoding="utf-8")

    def _run(self, job_id: str) -> Path:
        return self._root / "runs" / job_id


class Bucket:
    """`bucket/prefix` of an S3-compatible server. Every method raises StorageError where it does not answer."""

    def __init__(self, root: str) -> None:
        """Keys, endpoint and region come from `AWS_…` variables. Raises StorageError where s3fs is not installed."""
        try:
            import s3fs
        except ImportError as error:
            message = f"DSD_STORAGE is s3://{root}, and the package s3fs is not installed."
            raise StorageError(message, hint="pip install 'dsd[s3]'") from error
        self.place = f"s3://{root}"
        self._root = root
        # Servers other than Amazon's answer a range with the checksum of the whole; manifests are checked instead.
        checksums = ("request_checksum_calculation", "response_checksum_validation")
        config: dict[str, Any] = dict.fromkeys(checksums, "when_required")
        config |= {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"max_attempts": 1}}
        self._fs = s3fs.S3FileSystem(config_kwargs=config, use_listings_cache=False, skip_instance_cache=True)
        self._fs.retries = 2

    def file(self, job_id: str, name: str) -> Stored | None:
        """None where there is no object of this name."""
        key = self._key(job_id, name)
        with self._answering():
            try:
                size = self._fs.info(key)["size"]
            except FileNotFoundError:
                return None
        return Stored(size, lambda first, end: self._read(key, first, end))

    @contextmanager
    def borrowed(self, job_id: str, name: str) -> Iterator[Path | None]:
        """A copy of a file or folder of a run, to read; None where there is none."""
        with tempfile.TemporaryDirectory(prefix="dsd-") as folder:
            path = self.bring(job_id, name, Path(folder))
            yield path if path.exists() else None

    def bring(self, job_id: str, name: str, to: Path) -> Path:
        """Copy a file, or all files of a folder, below `to`; returns where it then is, if it is anywhere."""
        for found in self.files(job_id):
            if found == name or found.startswith(f"{name}/"):
                self.get(job_id, found, to / found)
        return to / name

    def get(self, job_id: str, name: str, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        with self._answering():
            self._fs.get_file(self._key(job_id, name), str(to))

    def put(self, job_id: str, name: str, path: Path) -> None:
        with self._answering():
            self._fs.put_file(str(path), self._key(job_id, name))

    def files(self, job_id: str) -> dict[str, Entry]:
        return self._found(f"{self._root}/runs/{job_id}/")

    def runs(self) -> Runs:
        """Every file there is."""
        runs: Runs = {}
        for found, entry in self._found(f"{self._root}/runs/").items():
            job_id, _, name = found.partition("/")
            runs.setdefault(job_id, {})[name] = entry
        return runs

    def remove(self, job_id: str, names: Iterable[str]) -> None:
        """Delete these files in this order. What is gone already is no error."""
        with self._answering():
            for name in names:
                self._fs.rm_file(self._key(job_id, name))

    def note(self, name: str) -> str | None:
        """A small text that was put beside the run folders."""
        with self._answering():
            try:
                return str(self._fs.cat_file(f"{self._root}/{name}").decode())
            except FileNotFoundError:
                return None

    def put_note(self, name: str, text: str) -> None:
        with self._answering():
            self._fs.pipe_file(f"{self._root}/{name}", text.encode())

    def _key(self, job_id: str, name: str) -> str:
        return f"{self._root}/runs/{job_id}/{name}"

    def _found(self, prefix: str) -> dict[str, Entry]:
        """Objects below a prefix, by the rest of their keys."""
        with self._answering():
            found: dict[str, dict[str, Any]] = self._fs.find(prefix, detail=True)
        return {
            key.removeprefix(prefix): Entry(info["size"], info["LastModified"])
            for key, info in found.items()
            if key.startswith(prefix) and info["type"] == "file"
        }

    def _read(self, key: str, first: int, end: int) -> Iterator[bytes]:
        while first < end:
            with self._answering():
                block: bytes = self._fs.cat_file(key, start=first, end=min(end, first + BLOCK))
            if not block:
                raise EOFError(f"{key} ends at byte {first}; {end} were promised.")
            first += len(block)
            yield block

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import aiohttp
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (OSError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
            message = f"The storage {self.place} does not answer as it should: {error}"
            raise StorageError(message, hint="Check the server, AWS_ENDPOINT_URL and the AWS_… keys.") from error


Storage = Folder | Bucket


def storage_of(settings: Settings) -> Storage:
    """The storage of these settings; a bucket's client must be made after a fork. Raises StorageError."""
    return Bucket(settings.bucket) if settings.bucket is not None else Folder(settings.storage_dir)


def signals_of(settings: Settings) -> Store:
    """The store of teachers' signals of these settings: a folder in any case, for it is read through memory maps."""
    return Store(settings.signals_dir, settings.signals_bytes)


def _read(path: Path, first: int, end: int) -> Iterator[bytes]:
    if first >= end:
        return
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        file.seek(first)
        while first < end:
            chunk = file.read(min(CHUNK, end - first))
            if not chunk:
                raise EOFError(f"{path} ends at byte {first}; {end} were promised.")
            first += len(chunk)
            yield chunk


def _files(folder: Path) -> dict[str, Entry]:
    """Of the whole tree below a folder; one that vanishes meanwhile is left out."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            found[str(path.relative_to(folder))] = Entry(status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
    return found


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
