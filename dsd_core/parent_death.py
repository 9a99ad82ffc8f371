"""Processes that end with the one that started them, however that dies. Linux only; elsewhere they may outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> Callable[[], None] | None:
    """What a new process runs before its program (`preexec_fn`) so that it dies with this one; None off Linux.

    The kernel means the thread: call it where a process is started from the main thread.
    """
    return partial(die_with, os.getpid()) if sys.platform.startswith("linux") else None


def die_with(parent: int) -> None:
    """Have this process killed when `parent`, which has started it, dies; at once where it has died already."""
    if sys.platform.startswith("linux"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
