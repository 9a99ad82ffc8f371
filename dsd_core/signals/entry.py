"""An entry of the signal store: records of bytes on disk, each with a checksum, filled and read by several processes.

    KEY.signals/
        about.json          the records' sizes, what they are of, and a checksum of that
        data                the records, each at a multiple of 64 bytes; reserved when the entry is made
        digests             XXH3 of each record, 16 bytes over key, number and data; zeros: the record is absent
        lock                byte 0: in use; byte 1 + n: record n is being filled

A record is written before its digest, and read through a read-only map that is held against its digest each time:
whatever a crash, a full disk or a flipped bit left is a record that is absent. Writing is never through the map, where
a full disk would end the process.

Who fills a record holds its lock, which the kernel frees when the process ends. Who has waited `patience_s` for another
that neither fills nor ends goes on without the lock: at worst two write the same, and a record between them is absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from dsd_core.disk import Disk, storage_errors
from dsd_core.errors import StorageError
from dsd_core.fault_points import fault_point
from dsd_core.signals.locks import LOCKS, Locks

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATIENCE_S = 30.0
POLL_S = 0.02

FORMAT = 2
SUFFIX = ".signals"
ALIGNED = 64
DIGEST = 16
ABSENT = bytes(DIGEST)
IN_USE = 0  # the lock's byte

DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}
"""What may be wrong with a file of an entry that is better made anew; other errors say that nobody may look."""


class Entry:
    """Records by number, from 0. May be pickled: in another process it opens by itself when it is first used."""

    def __init__(
        self, path: Path, key: str, sizes: tuple[int, ...], patience_s: float = PATIENCE_S, locks: type[Locks] = LOCKS
    ) -> None:
        self.path = path
        self.key = key
        self.sizes = sizes
        self.records = len(sizes)
        self._patience_s = patience_s
        self._locks = locks
        self._starts = array("Q", (0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)))
        self._data_bytes = self._starts[-1]
        self.bytes = self._data_bytes + self.records * DIGEST
        self._open: _Open | None = None
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Entry, (self.path, self.key, self.sizes, self._patience_s, self._locks)

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lay_out(self, folder: Path, disk: Disk, about: Mapping[str, Any]) -> None:
        """Write the files of an entry that holds no record yet. Raises OSError."""
        disk.make_folder(folder)
        disk.reserve(folder / "data", self._data_bytes)
        disk.reserve(folder / "digests", self.records * DIGEST)
        disk.write(folder / "about.json", About(self.key, self.sizes, dict(about), time.time()).dump())
        disk.write(folder / "lock", b"")
        disk.sync_folder(folder)

    def attach(self, *, used: bool) -> bool:
        """Open the entry if it is there and whole."""
        self._open = self._found(used=used)
        return self._open is not None

    def close(self) -> None:
        """Records that were read may still be looked at."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def fits(self) -> bool:
        """Whether the files have the sizes they were made with."""
        try:
            sizes = [(self.path / name).stat().st_size for name in ("data", "digests")]
        except FileNotFoundError:
            return False
        return sizes == [self._data_bytes, self.records * DIGEST]

    @property
    def complete(self) -> bool:
        """Whether no record is missing. Takes a look at all of them."""
        return self.missing() == 0

    def missing(self) -> int:
        """How many records are absent. A damaged one counts once somebody has tried to read it. Raises StorageError."""
        return len(self.absent())

    def absent(self) -> list[int]:
        """The numbers of those that are missing. Raises StorageError."""
        with storage_errors(self.path.parent):
            digests = os.pread(self._opened().digests, self.records * DIGEST, 0).ljust(self.records * DIGEST, b"\0")
        return [n for n in range(self.records) if digests[n * DIGEST : (n + 1) * DIGEST] == ABSENT]

    def read(self, number: int) -> memoryview | None:
        """The bytes of a record, mapped and read-only; None where it is absent, damaged or cannot be read."""
        self._refuse_number(number)
        try:
            record = self._record(number)
            if record is None:
                self.forget_if_damaged(number)
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
            with storage_errors(self.path.parent):
                until = time.monotonic() + self._patience_s
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
        with storage_errors(self.path.parent):
            if self._record(number) is not None:  # by one that waited for this process in vain; readers may have it
                return
            _write_all(files.data, content, self._starts[number])
            fault_point("signals.after_data")
            _write_all(files.digests, self._digest(number, content), number * DIGEST)

    def forget_if_damaged(self, number: int) -> bool:
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
                with storage_errors(self.path.parent):
                    self._open = self._found(used=False)
            if self._open is None:
                raise StorageError(
                    f"The teacher's signals {self.key} are no longer in {self.path.parent}.",
                    hint="Start the job again; it computes them anew.",
                )
            return self._open

    def _found(self, *, used: bool) -> _Open | None:
        try:
            with ExitStack() as undo:
                lock = self._locks(self.path / "lock")
                undo.callback(lock.close)
                fault_point("signals.before_use")
                if not waited(lambda: lock.try_lock(IN_USE, exclusive=False), self._patience_s):
                    return None
                about = read_about(self.path, self.key)
                if not is_locked(self.path, lock) or about is None or about.sizes != self.sizes or not self.fits():
                    return None
                data = os.open(self.path / "data", os.O_RDWR | os.O_CLOEXEC)
                undo.callback(os.close, data)
                digests = os.open(self.path / "digests", os.O_RDWR | os.O_CLOEXEC)
                undo.callback(os.close, digests)
                mapped = memoryview(mmap.mmap(data, self._data_bytes, access=mmap.ACCESS_READ))
                return _Open(lock, data, digests, mapped, undo.pop_all().close, used=used)
        except OSError as error:
            if error.errno in DAMAGE:
                return None
            raise


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
class About:
    """What lies beside an entry's records, in `about.json`; `about` is what its maker said of it."""

    key: str
    sizes: tuple[int, ...]
    about: dict[str, Any]
    created_at: float

    def dump(self) -> bytes:
        lengths = [[size, len(list(same))] for size, same in groupby(self.sizes)]
        fields = {"format": FORMAT, **vars(self), "sizes": lengths}
        return json.dumps(fields | {"checksum": _checksum(fields)}, indent=1).encode()


def read_about(path: Path, key: str) -> About | None:
    """None where it is damaged. Raises OSError where nobody may look."""
    try:
        fields = json.loads((path / "about.json").read_bytes())
        if fields.pop("checksum") != _checksum(fields) or (fields.pop("format"), fields["key"]) != (FORMAT, key):
            return None
        sizes = tuple(chain.from_iterable(repeat(size, times) for size, times in fields.pop("sizes")))
        return About(sizes=sizes, **fields)
    except OSError as error:
        if error.errno in DAMAGE:
            return None
        raise
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=DIGEST).hexdigest()


def count_filled(digests: bytes) -> int:
    whole = memoryview(digests)[: len(digests) // DIGEST * DIGEST]
    found = list(struct.iter_unpack(f"{DIGEST}s", whole))
    return len(found) - found.count((ABSENT,))


def _write_all(fd: int, content: Buffer, at: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(fd, left, at)
        left, at = left[written:], at + written


def is_locked(path: Path, lock: Locks) -> bool:
    """Whether the locked file is still that of the entry of this name."""
    try:
        return os.path.samestat(os.fstat(lock.fd), os.stat(path / "lock"))
    except FileNotFoundError:
        return False


def waited(is_done: Callable[[], bool], patience_s: float) -> bool:
    """Whether it came true while there was patience."""
    until = time.monotonic() + patience_s
    while not is_done():
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)
    return True
