"""What the process does with memory that it has freed."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_NEVER = 2**31 - 1  # bytes at the end of the heap, of which the rest goes back to the kernel


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is asked for next, for the rest of the process; elsewhere do nothing.

    A training step frees and asks for the same tensors again and again. Each of them is large enough to be mapped anew,
    and the kernel then fills it with zeros, page by page: a third of a step's CPU time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
