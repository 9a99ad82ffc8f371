"""What a checkpoint does to a file system, each step of it on its own, and what its errors mean to a user."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsd_core.errors import StorageError

UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM),
}
FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "has no more quota for this user", errno.EFBIG: "takes no file so large"}

_ZEROS = bytes(1 << 20)


class Disk:
    """The steps of a durable write. Tests record them, or let one of them fail."""

    def make_folder(self, folder: Path) -> None:
        """And what it lies in, where that is not there."""
        folder.mkdir(parents=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write and sync a file. One whose sync failed is not to be synced again: the kernel has forgotten the loss."""
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            self.sync(path, file.fileno())

    def reserve(self, path: Path, size: int) -> None:
        """Write and sync a file of zeros that has its place on the disk, so that filling it does not find that full,
        as far as the file system can promise it."""
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, len(_ZEROS)):
                    file.write(_ZEROS[: size - start])
                file.flush()
            self.sync(path, file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(folder, os.O_RDONLY)
        try:
            self.sync(folder, fd)
        finally:
            os.close(fd)

    def sync(self, path: Path, fd: int) -> None:
        os.fsync(fd)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove(self, folder: Path) -> None:
        """With all that is in it, as far as possible; no error."""
        shutil.rmtree(folder, ignore_errors=True)

    def free_bytes(self, folder: Path) -> int:
        """What an ordinary user may still write."""
        return shutil.disk_usage(folder).free


def storage_error(error: OSError, where: Path) -> StorageError:
    """What an operating system's error at writing below `where` means to a user."""
    if error.errno in FULL:
        return StorageError(
            f"The disk that holds {where} {FULL[error.errno]}.",
            hint="Free some space and start the job again; it resumes.",
        )
    return StorageError(
        f"{where} cannot be written: {error.strerror or error}.", hint="Check the disk and the folder's permissions."
    )


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Raise StorageError in the place of OSError."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, where) from error
