"""The pulse of a process: a file with a counter that moves as long as the work does; silence is taken for a stall."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dsd_core.errors import Interrupted

EVERY_S = 0.2


class Pulse:
    """Counts calls into `path`, written at most every `every_s`. A disk that is full stops the pulse, not the work."""

    def __init__(self, path: Path, every_s: float = EVERY_S) -> None:
        self._path = path
        self._every_s = every_s
        self._count = 0
        self._written_at = -math.inf  # time.monotonic()

    def __call__(self) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._written_at >= self._every_s:
            self._written_at = now
            with suppress(OSError):
                self._write(f"{self._count:012d}\n".encode())

    def _write(self, text: bytes) -> None:
        """Over the old text, of the same length: a reader never sees an empty file, and a full disk has the room."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, text, 0)
        finally:
            os.close(fd)


def read_on(pulse: Callable[[], None], stop: Callable[[], bool], done: int) -> None:
    """Show that the data is being read, `done` images of it so far. Raises Interrupted when that is to stop."""
    pulse()
    if stop():
        raise Interrupted(f"Stopped while the data was read, {done} images into it.")
