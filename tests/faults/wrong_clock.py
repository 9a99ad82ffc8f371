"""`python -m tests.faults.wrong_clock SECONDS MODULE …`: runs a module in a process whose clock is off.

What asks the database for the time, and waiting by the monotonic clock, are as they were.
"""

from __future__ import annotations

import datetime as standard
import runpy
import sys
import time
from typing import Any

_right_time = time.time


def shift(seconds: float) -> None:
    """Put the process's wall clock forward, before anything else is imported."""

    class Shifted(standard.datetime):
        @classmethod
        def now(cls, tz: standard.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: _right_time() + seconds
    standard.datetime = Shifted  # type: ignore[misc]


if __name__ == "__main__":
    shift(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
