"""A forked process that outlives the supervisor a moment: however the supervisor dies, its children's groups die too.

PR_SET_PDEATHSIG ends direct children on Linux; their own children (MLflow's server, Celery's pool) and macOS need more.
The supervisor writes `+PGID` and `-PGID` lines into a pipe; the end of the pipe is the supervisor's death.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress


class Watchdog:
    """Forks in the constructor, so it is made before any thread is started."""

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        if os.fork() == 0:
            os.close(self._pipe)
            _watch(reading)
        os.close(reading)

    def guard(self, group: int) -> None:
        os.write(self._pipe, b"+%d\n" % group)

    def release(self, group: int) -> None:
        os.write(self._pipe, b"-%d\n" % group)


def _watch(pipe: int) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    with os.fdopen(pipe, "rb") as lines:
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        kill_group(group, signal.SIGKILL)
    os._exit(0)


def kill_group(group: int, number: int) -> bool:
    """Send a signal to every process of a group; False when there is none left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False
