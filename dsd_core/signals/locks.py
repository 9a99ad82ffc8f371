"""Locks on the bytes of a file, between processes: the kernel frees those of a process that ends, however it ends.

Linux has locks that belong to an open file; elsewhere they belong to the process, and `ProcessLocks` makes them behave
alike. Both work between machines over NFS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar


class OpenFileLocks:
    """Two on one file exclude each other, in one process too. A forked child shares its parent's."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises OSError; FileNotFoundError where there is no such file and none is to be created."""
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)

    def try_lock(self, at: int, *, exclusive: bool) -> bool:
        """Lock a byte, which need not exist; False where another holds it. Raises OSError where the file system has no
        locks."""
        return _taken(lambda: self._set(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, at))

    def unlock(self, at: int) -> None:
        self._set(fcntl.F_UNLCK, at)

    def close(self) -> None:
        """And unlock."""
        os.close(self.fd)

    def _set(self, kind: int, at: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, at, 1, 0))


class ProcessLocks:
    """The same, made of locks of the process. Those know no threads and end when any descriptor of the file is closed:
    so a process opens each file once, and writes down who of its own holds what."""

    _guard: ClassVar = threading.Lock()
    _files: ClassVar[dict[tuple[int, int, int], _LockedFile]] = {}
    """By process, device and inode."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises OSError; FileNotFoundError where there is no such file and none is to be created."""
        with self._guard:
            if create and not path.exists():
                path.touch()
            self._file = self._opened(path)
            self._file.users.add(id(self))
        self.fd = self._file.fd

    def try_lock(self, at: int, *, exclusive: bool) -> bool:
        """Lock a byte, which need not exist; False where another holds it. Raises OSError where the file system has no
        locks."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        with self._guard:
            holders = self._file.holders.setdefault(at, {})
            if any(theirs or exclusive for theirs in holders.values()):
                return False
            if not holders and not _taken(lambda: fcntl.lockf(self.fd, kind | fcntl.LOCK_NB, 1, at)):
                return False
            holders[id(self)] = exclusive
            return True

    def unlock(self, at: int) -> None:
        with self._guard:
            self._unlock(at)

    def close(self) -> None:
        """And unlock."""
        with self._guard:
            for at in [at for at, holders in self._file.holders.items() if id(self) in holders]:
                self._unlock(at)
            self._file.users.discard(id(self))
            if not self._file.users:
                self._files.pop(self._file.key, None)
                os.close(self.fd)

    def _unlock(self, at: int) -> None:
        holders = self._file.holders.get(at, {})
        if holders.pop(id(self), None) is not None and not holders:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, at)

    @classmethod
    def _opened(cls, path: Path) -> _LockedFile:
        known = cls._files.get(_key(os.stat(path)))
        if known is None:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            key = _key(os.fstat(fd))
            known = cls._files.setdefault(key, _LockedFile(key, fd))
        return known


@dataclass
class _LockedFile:
    key: tuple[int, int, int]
    fd: int
    users: set[int] = field(default_factory=set)
    holders: dict[int, dict[int, bool]] = field(default_factory=dict)  # by byte: who, and whether exclusively


Locks = OpenFileLocks | ProcessLocks
LOCKS: type[Locks] = OpenFileLocks if sys.platform == "linux" else ProcessLocks


def _taken(lock: Callable[[], object]) -> bool:
    try:
        lock()
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _key(found: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), found.st_dev, found.st_ino
