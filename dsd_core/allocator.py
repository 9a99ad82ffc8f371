"""How the C library hands out memory to tensors."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep what tensors free for the next ones, in this process and for good.

    glibc gives each large block back to the kernel at once and gets it anew, page by page, at the next step: on a CPU
    that is a quarter of the time of a training step. Other C libraries are left as they are.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 64 << 20)


def give_freed_memory_back() -> None:
    """Let the kernel have what is free now, such as the room of a network that has left."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
