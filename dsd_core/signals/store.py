"""Entries of records under one folder, shared by all processes that use it and bounded in bytes.

    FOLDER/store.lock       whose turn it is to make and to remove entries
    FOLDER/KEY.signals/     an entry: all records of one key

An entry is made under another name and then renamed, so it is whole or absent.
"""

from __future__ import annotations

import errno
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsd_core.disk import Disk, storage_errors
from dsd_core.errors import StorageError
from dsd_core.fault_points import fault_point
from dsd_core.signals.entry import (
    DAMAGE,
    IN_USE,
    PATIENCE_S,
    SUFFIX,
    Entry,
    count_filled,
    is_locked,
    read_about,
    waited,
)
from dsd_core.signals.locks import LOCKS, Locks

DEFAULT_BYTES = 20 << 30
LEFT_FREE_BYTES = 256 << 20
"""Of the disk, left to checkpoints, events and results when an entry is made."""

_TRIES = 3
_HALF = ".tmp"
_GONE = ".gone"
_KEY = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")


@dataclass(frozen=True)
class Held:
    """An entry as it lies in the store. `about` is what its maker said of it; empty, as are the counts, where the entry
    is not `whole`."""

    key: str
    about: Mapping[str, Any]
    bytes: int
    records: int
    filled: int
    created_at: float  # seconds since 1970
    used_at: float
    in_use: bool
    whole: bool = True


@dataclass(frozen=True)
class Verified:
    """How many records of an entry are there and right, and how many were damaged and are forgotten now."""

    key: str
    filled: int
    damaged: int
    whole: bool = True


@dataclass(frozen=True)
class Pruned:
    """Entries that were removed, or would be, and those that would have been were they not in use."""

    removed: tuple[Held, ...]
    in_use: tuple[Held, ...]


@dataclass(frozen=True)
class Store:
    """The entries under one folder, of `limit_bytes` together. Several on one folder, in any processes, share it."""

    folder: Path
    limit_bytes: int = DEFAULT_BYTES
    patience_s: float = PATIENCE_S
    disk: Disk = field(default=Disk(), repr=False)
    locks: type[Locks] = field(default=LOCKS, repr=False)

    def open(self, key: str, sizes: Sequence[int], about: Mapping[str, Any]) -> Entry:
        """The entry of `key`, with records of these sizes in bytes: the one that is there, else a new one without any
        record. It is in use until closed.

        For a new one, the least recently used go of those that nobody uses, until it fits. One that is damaged or has
        other sizes is made anew. Raises StorageError where there is no room or the folder cannot be written.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key: up to 64 of a-z, 0-9, - and _.")
        if not sizes or min(sizes) < 1:
            raise ValueError("An entry has at least one record, and a record at least one byte.")
        entry = self._entry(key, tuple(sizes))
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if entry.attach(used=True):
                return entry
            with self._turn():
                for _ in range(_TRIES):
                    if entry.attach(used=True):
                        return entry
                    self._discard(self._path(key))
                    self._make_room(key, entry.bytes)
                    self._create(entry, about)
        raise StorageError(f"{self._path(key)} was removed each time it was made.", hint="Who else writes there?")

    def entries(self) -> list[Held]:
        """What is in the store: damaged entries, then the others, least recently used first. Raises StorageError."""
        with storage_errors(self.folder):
            held = [self._held(key) for key in self._keys()]
        return sorted((item for item in held if item is not None), key=lambda item: (item.whole, item.used_at))

    def verify(self, key: str | None = None) -> list[Verified]:
        """Hold every record, of one entry or of all, against its checksum. Damaged records are forgotten: the next job
        fills them again. Raises StorageError."""
        with storage_errors(self.folder):
            return [self._verified(item) for item in self.entries() if key in (None, item.key)]

    def prune(
        self, *, key: str | None = None, unused_s: float = 0.0, to_bytes: int = 0, dry_run: bool = False
    ) -> Pruned:
        """Remove entries, least recently used first, until those left have `to_bytes`: only that of `key`, where given,
        and only those not used for `unused_s`. Also removes what killed processes left half made. Raises StorageError.
        """
        removed, in_use = [], []
        now = time.time()
        with storage_errors(self.folder), self._turn(tidy=not dry_run):
            found = self.entries()
            left = sum(item.bytes for item in found)
            for item in found:
                if left <= to_bytes or key not in (None, item.key) or now - item.used_at < unused_s:
                    continue
                if item.in_use or not (dry_run or self._remove(item.key)):
                    in_use.append(item)
                else:
                    removed.append(item)
                    left -= item.bytes
        return Pruned(tuple(removed), tuple(in_use))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entry(self, key: str, sizes: tuple[int, ...]) -> Entry:
        return Entry(self._path(key), key, sizes, self.patience_s, self.locks)

    def _keys(self) -> list[str]:
        names = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return [name for name in names if _KEY.fullmatch(name)]

    def _held(self, key: str) -> Held | None:
        """None: it has been removed meanwhile."""
        path = self._path(key)
        try:
            found = {file.name: file.lstat() for file in path.iterdir()} if path.is_dir() else {}
            size = sum(file.st_size for file in found.values())
            used_at = found.get("lock", path.stat()).st_mtime
            in_use = not self._is_free(path)
            about = read_about(path, key)
            if about is None or not self._entry(key, about.sizes).fits():
                return Held(key, {}, size, 0, 0, used_at, used_at, in_use, whole=False)
            filled = count_filled((path / "digests").read_bytes())
        except FileNotFoundError:
            return None
        return Held(key, about.about, size, len(about.sizes), filled, about.created_at, used_at, in_use)

    def _verified(self, item: Held) -> Verified:
        about = read_about(self._path(item.key), item.key)
        if about is not None:
            with self._entry(item.key, about.sizes) as entry:
                if entry.attach(used=False):
                    damaged = sum(entry.forget_if_damaged(number) for number in range(entry.records))
                    return Verified(item.key, entry.records - entry.missing(), damaged)
        if not item.in_use:
            self._remove(item.key)
        return Verified(item.key, 0, 0, whole=False)

    def _make_room(self, key: str, wanted: int) -> None:
        """Raises StorageError, before anything is removed where that cannot help."""
        held = [item for item in self.entries() if item.key != key]
        idle = [item for item in held if not item.in_use]
        used = sum(item.bytes for item in held)
        idle_bytes = sum(item.bytes for item in idle)
        self._refuse(wanted, used - idle_bytes, self._free_bytes() + idle_bytes)
        for item in idle:
            if used + wanted <= self.limit_bytes and wanted <= self._free_bytes():
                break
            if self._remove(item.key):
                used -= item.bytes
        self._refuse(wanted, used, self._free_bytes())

    def _free_bytes(self) -> int:
        return self.disk.free_bytes(self.folder) - LEFT_FREE_BYTES

    def _refuse(self, wanted: int, used: int, free: int) -> None:
        """Raise StorageError where so many more bytes do not fit beside those in use, or not on the disk."""
        if used + wanted > self.limit_bytes:
            raise StorageError(
                f"The teacher's signals take {_megabytes(wanted)}, but {self.folder} may hold"
                f" {_megabytes(self.limit_bytes)}, of which {_megabytes(used)} are in use.",
                hint="Allow the signal store more bytes, or keep fewer views or scales.",
            )
        if wanted > free:
            raise StorageError(
                f"The teacher's signals take {_megabytes(wanted)}, but the disk that holds {self.folder} has"
                f" {_megabytes(max(free, 0))} left for them, beside {_megabytes(LEFT_FREE_BYTES)} for the runs.",
                hint="Free some space, or keep fewer views or scales.",
            )

    def _create(self, entry: Entry, about: Mapping[str, Any]) -> None:
        """Make the entry, unless another was quicker."""
        made = self.folder / f"{entry.key}-{secrets.token_hex(8)}{SUFFIX}{_HALF}"
        try:
            entry.lay_out(made, self.disk, about)
            fault_point("signals.before_rename")
            self.disk.rename(made, self._path(entry.key))
            self.disk.sync_folder(self.folder)
        except OSError as error:
            self.disk.remove(made)
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _remove(self, key: str) -> bool:
        """Remove an entry unless it is in use."""
        path = self._path(key)
        try:
            lock = self.locks(path / "lock")
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            self._discard(path)
            return True
        try:
            fault_point("signals.before_remove")
            if not lock.try_lock(IN_USE, exclusive=True) or not is_locked(path, lock):
                return False
            self._discard(path)
        finally:
            lock.close()
        return True

    def _is_free(self, path: Path) -> bool:
        """Whether no process has the entry open."""
        try:
            lock = self.locks(path / "lock")
        except OSError as error:
            if error.errno in DAMAGE:
                return True
            raise
        try:
            return lock.try_lock(IN_USE, exclusive=True)
        finally:
            lock.close()

    def _discard(self, path: Path) -> None:
        """Under a name of its own first, so that no half of it is ever found; who has it open may go on with it."""
        gone = path.with_name(f"{path.name.removesuffix(SUFFIX)}-{secrets.token_hex(8)}{SUFFIX}{_GONE}")
        with suppress(FileNotFoundError):
            self.disk.rename(path, gone)
            self._clear(gone)

    def _clear(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            self.disk.remove(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _turn(self, *, tidy: bool = True) -> Iterator[None]:
        """Make and remove entries one process at a time, so that none removes more than it must. One that is stopped
        for long in its turn is not waited for: who then finds its half made entry gone makes it anew."""
        if not self.folder.is_dir():
            yield
            return
        lock = self.locks(self.folder / "store.lock", create=True)
        try:
            if waited(lambda: lock.try_lock(0, exclusive=True), self.patience_s) and tidy:
                for left in (*self.folder.glob(f"*{SUFFIX}{_HALF}"), *self.folder.glob(f"*{SUFFIX}{_GONE}")):
                    self._clear(left)
            yield
        finally:
            lock.close()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
