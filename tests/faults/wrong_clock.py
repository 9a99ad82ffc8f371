"""`python -m tests.faults.wrong_clock SECONDS MODULE …`: runs a module whose wall clock is wrong by so many seconds.

`time.time` and `datetime` are wrong before the module is imported, so everything it imports believes them. The
monotonic clock is right, as it is where an operator sets a clock.
"""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from typing import Any, Self


def skew(seconds: float) -> None:
    true_time, true_time_ns, delta = time.time, time.time_ns, datetime.timedelta(seconds=seconds)

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            return super().now(tz) + delta

        @classmethod
        def utcnow(cls) -> Self:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    def wrong(module: Any, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(module, name, value)

    wrong(time, time=lambda: true_time() + seconds, time_ns=lambda: true_time_ns() + int(seconds * 1e9))
    wrong(datetime, datetime=Skewed)


if __name__ == "__main__":
    skew(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
