"""Records of bytes on disk, each with a checksum, shared by all processes that use one folder and bounded in bytes.

    FOLDER/store.lock       whose turn it is to make and to remove entries
    FOLDER/KEY.signals/     an entry: all records of one key
        about.json          the records' sizes, what they are of, and a checksum of that
        data                the records, each at a multiple of 64 bytes; reserved when the entry is made
        digests             XXH3 of each record, 16 bytes over key, number and data; zeros: the record is absent
        lock                byte 0: in use; byte 1 + n: record n is being filled

An entry is made under another name and then renamed, so it is whole or absent. A record is written before its digest,
and read through a read-only map that is held against its digest each time: whatever a crash, a full disk or a flipped
bit left is a record that is absent. Writing is never through the map, where a full disk would end the process.

Who fills a record holds its lock, which the kernel frees when the process ends. Who has waited `patience_s` for another
that neither fills nor ends goes on without the lock: at worst two write the same, and a record between them is absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import struct
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from dsd_core.disk import Disk, storage_error
from dsd_core.errors import StorageError
from dsd_core.fault_points import fault_point
from dsd_core.signals.locks import LOCKS, Locks

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEFAULT_BYTES = 20 << 30
LEFT_FREE_BYTES = 256 << 20
"""Of the disk, left to checkpoints, events and results when an entry is made."""
PATIENCE_S = 30.0
POLL_S = 0.02

FORMAT = 2
SUFFIX = ".signals"
ALIGNED = 64
DIGEST = 16
ABSENT = bytes(DIGEST)
IN_USE = 0  # the lock's byte

_TRIES = 3
_HALF = ".tmp"
_GONE = ".gone"
_KEY = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}
"""What may be wrong with a file of an entry that is better made anew; other errors say that nobody may look."""


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
        entry = Entry(self, key, tuple(sizes))
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            if entry._attach(used=True):
                return entry
            with self._turn():
                for _ in range(_TRIES):
                    if entry._attach(used=True):
                        return entry
                    self._discard(self._path(key))
                    self._make_room(key, entry.bytes)
                    self._create(entry, about)
        raise StorageError(f"{self._path(key)} was removed each time it was made.", hint="Who else writes there?")

    def entries(self) -> list[Held]:
        """What is in the store: damaged entries, then the others, least recently used first. Raises StorageError."""
        with self._errors():
            held = [self._held(key) for key in self._keys()]
        return sorted((item for item in held if item is not None), key=lambda item: (item.whole, item.used_at))

    def verify(self, key: str | None = None) -> list[Verified]:
        """Hold every record, of one entry or of all, against its checksum. Damaged records are forgotten: the next job
        fills them again. Raises StorageError."""
        with self._errors():
            return [self._verified(item) for item in self.entries() if key in (None, item.key)]

    def prune(
        self, *, key: str | None = None, unused_s: float = 0.0, to_bytes: int = 0, dry_run: bool = False
    ) -> Pruned:
        """Remove entries, least recently used first, until those left have `to_bytes`: only that of `key`, where given,
        and only those not used for `unused_s`. Also removes what killed processes left half made. Raises StorageError.
        """
        removed, in_use = [], []
        now = time.time()
        with self._errors(), self._turn(tidy=not dry_run):
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
            about = _read_about(path, key)
            if about is None or not Entry(self, key, about.sizes)._fits(path):
                return Held(key, {}, size, 0, 0, used_at, used_at, in_use, whole=False)
            filled = _count_filled((path / "digests").read_bytes())
        except FileNotFoundError:
            return None
        return Held(key, about.about, size, len(about.sizes), filled, about.created_at, used_at, in_use)

    def _verified(self, item: Held) -> Verified:
        about = _read_about(self._path(item.key), item.key)
        if about is not None:
            with Entry(self, item.key, about.sizes) as entry:
                if entry._attach(used=False):
                    damaged = sum(entry._is_damaged(number) for number in range(entry.records))
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
            self.disk.make_folder(made)
            self.disk.reserve(made / "data", entry._data_bytes)
            self.disk.reserve(made / "digests", entry.records * DIGEST)
            self.disk.write(made / "about.json", _About(entry.key, entry.sizes, dict(about), time.time()).dump())
            self.disk.write(made / "lock", b"")
            self.disk.sync_folder(made)
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
            if error.errno not in _DAMAGE:
                raise
            self._discard(path)
            return True
        try:
            fault_point("signals.before_remove")
            if not lock.try_lock(IN_USE, exclusive=True) or not _is_locked(path, lock):
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
            if error.errno in _DAMAGE:
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
            if _waited(lambda: lock.try_lock(0, exclusive=True), self.patience_s) and tidy:
                for left in (*self.folder.glob(f"*{SUFFIX}{_HALF}"), *self.folder.glob(f"*{SUFFIX}{_GONE}")):
                    self._clear(left)
            yield
        finally:
            lock.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.folder) from error


class Entry:
    """Records by number, from 0. May be pickled: in another process it opens by itself when it is first used."""

    def __init__(self, store: Store, key: str, sizes: tuple[int, ...]) -> None:
        self.key = key
        self.sizes = sizes
        self.records = len(sizes)
        self._store = store
        self._starts = array("Q", (0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)))
        self._data_bytes = self._starts[-1]
        self.bytes = self._data_bytes + self.records * DIGEST
        self._open: _Open | None = None
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Entry, (self._store, self.key, self.sizes)

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Records that were read may still be looked at."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def complete(self) -> bool:
        """Whether no record is missing. Takes a look at all of them."""
        return self.missing() == 0

    def missing(self) -> int:
        """How many records are absent. A damaged one counts once somebody has tried to read it. Raises StorageError."""
        return len(self.absent())

    def absent(self) -> list[int]:
        """The numbers of those that are missing. Raises StorageError."""
        with self._store._errors():
            digests = os.pread(self._opened().digests, self.records * DIGEST, 0).ljust(self.records * DIGEST, b"\0")
        return [n for n in range(self.records) if digests[n * DIGEST : (n + 1) * DIGEST] == ABSENT]

    def read(self, number: int) -> memoryview | None:
        """The bytes of a record, mapped and read-only; None where it is absent, damaged or cannot be read."""
        self._refuse_number(number)
        try:
            record = self._record(number)
            if record is None:
                self._is_damaged(number)
        except (OSError, StorageError):
            return None
        return record

    @contextmanager
    def filling(self, numbers: Sequence[int], further: Iterable[int] = (), wanted: int = 0) -> Iterator[list[int]]:
        """Hold these records, and yield those to `write`: the ones still absent after others that were filling them are
        done, ended, or were waited for in vain. Also as many of the `further` ones as are `wanted`, passing over those
        that others are filling. Of one thread, one at a time. Raises StorageError."""
        for number in numbers:
            self._refuse_number(number)
        files, held = self._opened(), set[int]()
        try:
            with self._store._errors():
                until = time.monotonic() + self._store.patience_s
                for number in sorted(set(numbers)):  # all in one order, so that no two wait for each other
                    if self._is_to_fill(number, until):
                        held.add(number)
                ours = [number for number in dict.fromkeys(numbers) if number in held]
                free = (number for number in further if number not in held and self._is_to_fill(number, None))
                for number in islice(free, wanted):
                    held.add(number)
                    ours.append(number)
            yield ours
        finally:
            for number in held:
                files.release(number)

    def write(self, number: int, data: Buffer) -> None:
        """Write a record that `filling` yielded. Raises StorageError; the record is then absent."""
        content = memoryview(data).cast("B")
        files = self._opened()
        if not files.is_held(number):
            raise ValueError(f"Record {number} is not held: write what filling() yields, inside it.")
        if len(content) != self.sizes[number]:
            raise ValueError(f"Record {number} has {self.sizes[number]} bytes, not {len(content)}.")
        with self._store._errors():
            if self._record(number) is not None:  # by one that waited for this process in vain; readers may have it
                return
            _write_all(files.data, content, self._starts[number])
            fault_point("signals.after_data")
            _write_all(files.digests, self._digest(number, content), number * DIGEST)

    def _is_to_fill(self, number: int, until: float | None) -> bool:
        """Whether the record is absent; it is then held. Another that fills it is waited for `until` then, or never."""
        files = self._opened()
        while self._record(number) is None:
            fault_point("signals.before_hold")
            if files.hold(number, anyway=until is not None and time.monotonic() >= until):
                if self._record(number) is None:
                    return True
                files.release(number)
                return False
            if until is None:
                return False
            time.sleep(POLL_S)
        return False

    def _is_damaged(self, number: int) -> bool:
        """Whether a record does not fit its digest, and nobody is filling it; the digest is then taken away."""
        files = self._opened()
        if self._stored_digest(number) == ABSENT or not files.hold(number):
            return False
        try:
            if self._record(number) is not None or self._stored_digest(number) == ABSENT:
                return False
            _write_all(files.digests, ABSENT, number * DIGEST)
            return True
        finally:
            files.release(number)

    def _record(self, number: int) -> memoryview | None:
        """The record if it is there and right."""
        digest = self._stored_digest(number)
        if digest == ABSENT:
            return None
        record = self._opened().view(self._starts[number], self.sizes[number])
        return record if record is not None and self._digest(number, record) == digest else None

    def _stored_digest(self, number: int) -> bytes:
        return os.pread(self._opened().digests, DIGEST, number * DIGEST).ljust(DIGEST, b"\0")

    def _digest(self, number: int, content: Buffer) -> bytes:
        digest = xxhash.xxh3_128(self.key.encode(), seed=number)
        digest.update(content)
        return digest.digest()

    def _refuse_number(self, number: int) -> None:
        if not 0 <= number < self.records:
            raise IndexError(f"There is no record {number} of {self.records}.")

    def _opened(self) -> _Open:
        with self._guard:
            if self._open is not None and self._open.pid != os.getpid():  # a child has its own, once it needs it
                self._open.close()
                self._open = None
            if self._open is None:
                with self._store._errors():
                    self._open = self._found(used=False)
            if self._open is None:
                raise StorageError(
                    f"The teacher's signals {self.key} are no longer in {self._store.folder}.",
                    hint="Start the job again; it computes them anew.",
                )
            return self._open

    def _attach(self, *, used: bool) -> bool:
        """Open the entry if it is there and whole."""
        self._open = self._found(used=used)
        return self._open is not None

    def _found(self, *, used: bool) -> _Open | None:
        path = self._store._path(self.key)
        try:
            with ExitStack() as undo:
                lock = self._store.locks(path / "lock")
                undo.callback(lock.close)
                fault_point("signals.before_use")
                if not _waited(lambda: lock.try_lock(IN_USE, exclusive=False), self._store.patience_s):
                    return None
                about = _read_about(path, self.key)
                if not _is_locked(path, lock) or about is None or about.sizes != self.sizes or not self._fits(path):
                    return None
                data = os.open(path / "data", os.O_RDWR | os.O_CLOEXEC)
                undo.callback(os.close, data)
                digests = os.open(path / "digests", os.O_RDWR | os.O_CLOEXEC)
                undo.callback(os.close, digests)
                mapped = memoryview(mmap.mmap(data, self._data_bytes, access=mmap.ACCESS_READ))
                return _Open(lock, data, digests, mapped, undo.pop_all().close, used=used)
        except OSError as error:
            if error.errno in _DAMAGE:
                return None
            raise

    def _fits(self, path: Path) -> bool:
        """Whether the files have the sizes they were made with."""
        try:
            sizes = [(path / name).stat().st_size for name in ("data", "digests")]
        except FileNotFoundError:
            return False
        return sizes == [self._data_bytes, self.records * DIGEST]


class _Open:
    """The files of an entry in this process, and the records it holds."""

    def __init__(
        self, lock: Locks, data: int, digests: int, mapped: memoryview, close: Callable[[], None], *, used: bool
    ) -> None:
        self.pid = os.getpid()
        self.data = data
        self.digests = digests
        self._lock = lock
        self._mapped = mapped
        self._close = close
        self._used = used
        self._guard = threading.Lock()
        self._held: Counter[int] = Counter()
        self._touch()

    def view(self, start: int, size: int) -> memoryview | None:
        """None where the file has been cut off: to look there would end the process."""
        return self._mapped[start : start + size] if os.fstat(self.data).st_size >= start + size else None

    def hold(self, number: int, *, anyway: bool = False) -> bool:
        """Whether this process holds a record now; `anyway`: without its lock, where another has that."""
        with self._guard:
            mine = not self._held[number] and self._lock.try_lock(1 + number, exclusive=True)
            self._held[number] += mine or anyway
            return mine or anyway

    def is_held(self, number: int) -> bool:
        return self._held[number] > 0

    def release(self, number: int) -> None:
        with self._guard:
            self._held[number] -= 1
            if not self._held[number]:
                self._lock.unlock(1 + number)

    def close(self) -> None:
        if self.pid == os.getpid():
            self._touch()
        self._close()

    def _touch(self) -> None:
        if self._used:
            with suppress(OSError):
                os.utime(self._lock.fd, ns=(time.time_ns(), time.time_ns()))


@dataclass(frozen=True)
class _About:
    key: str
    sizes: tuple[int, ...]
    about: dict[str, Any]
    created_at: float

    def dump(self) -> bytes:
        lengths = [[size, len(list(same))] for size, same in groupby(self.sizes)]
        fields = {"format": FORMAT, **vars(self), "sizes": lengths}
        return json.dumps(fields | {"checksum": _checksum(fields)}, indent=1).encode()


def _read_about(path: Path, key: str) -> _About | None:
    """What lies beside an entry's records; None where it is damaged."""
    try:
        fields = json.loads((path / "about.json").read_bytes())
        if fields.pop("checksum") != _checksum(fields) or (fields.pop("format"), fields["key"]) != (FORMAT, key):
            return None
        sizes = tuple(chain.from_iterable(repeat(size, times) for size, times in fields.pop("sizes")))
        return _About(sizes=sizes, **fields)
    except OSError as error:
        if error.errno in _DAMAGE:
            return None
        raise
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=DIGEST).hexdigest()


def _count_filled(digests: bytes) -> int:
    whole = memoryview(digests)[: len(digests) // DIGEST * DIGEST]
    found = list(struct.iter_unpack(f"{DIGEST}s", whole))
    return len(found) - found.count((ABSENT,))


def _write_all(fd: int, content: Buffer, at: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(fd, left, at)
        left, at = left[written:], at + written


def _is_locked(path: Path, lock: Locks) -> bool:
    """Whether the locked file is still that of the entry of this name."""
    try:
        return os.path.samestat(os.fstat(lock.fd), os.stat(path / "lock"))
    except FileNotFoundError:
        return False


def _waited(is_done: Callable[[], bool], patience_s: float) -> bool:
    """Whether it came true while there was patience."""
    until = time.monotonic() + patience_s
    while not is_done():
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return True


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
