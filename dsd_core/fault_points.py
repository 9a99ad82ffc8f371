"""Places where a test may let a process fail: `DSD_FAULT="checkpoint.after_rename:kill"` in the environment.

    NAME:kill            SIGKILL to this process          NAME:raise           RuntimeError
    NAME:stop            SIGSTOP to this process          NAME:sleep=SECONDS   the thread sleeps

`NAME@K:…` acts the K-th time the place is passed, else the first time, and only then; several are joined by commas.
Where the variable is not set, a place costs one look into a dictionary.
"""

from __future__ import annotations

import os
import signal
import time

VARIABLE = "DSD_FAULT"

_passed: dict[tuple[str, str], int] = {}
"""How often each place was passed, for each value of the variable."""


def fault_point(name: str) -> None:
    """Fail here, if the environment asks for it. Raises RuntimeError for `raise`, ValueError for an unknown action."""
    wanted = os.environ.get(VARIABLE)
    if wanted:
        times = _passed[wanted, name] = _passed.get((wanted, name), 0) + 1
        for item in wanted.split(","):
            place, _, action = item.partition(":")
            at, _, count = place.partition("@")
            if at == name and times == int(count or 1):
                _act(name, action)


def _act(name: str, action: str) -> None:
    kind, _, seconds = action.partition("=")
    if kind == "raise":
        raise RuntimeError(f"Fault point {name}.")
    if kind == "sleep":
        time.sleep(float(seconds))
    elif kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[kind])
    else:
        raise ValueError(f"{VARIABLE}: there is no action {action!r}; use kill, stop, raise or sleep=SECONDS.")


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
