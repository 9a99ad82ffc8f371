"""Whether a training process still does something, by the counter in its file `pulse`.

Only time in which this worker itself looked counts as silence: one that was stopped for an hour has not seen anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

LONGEST_LOOK_S = 5.0  # of the time between two looks, no more counts
INTERVALS = 20  # a process may be silent this many times as long as it is on average


@dataclass
class Pulse:
    """Looks at the file of one attempt; make it before the attempt starts, for it removes what another has left."""

    path: Path
    stall_s: float
    first_step_s: float  # before the first pulse
    count: int = 0
    first_count: int = 0  # at the first look that found any
    beating_s: float = 0.0  # from that look to the last pulse
    silent_s: float = 0.0

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self._looked_at = time.monotonic()

    @property
    def began(self) -> bool:
        """It has worked through its start, and hears signals."""
        return self.count > 0

    @property
    def patience_s(self) -> float:
        """How long it may be silent now."""
        if not self.began:
            return self.first_step_s
        return max(self.stall_s, INTERVALS * self.beating_s / max(1, self.count - self.first_count))

    def stands_still(self) -> bool:
        """Look at the file; True where it has been silent for too long."""
        now = time.monotonic()
        self.silent_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        count = self._read()
        if count > self.count:
            if self.began:
                self.beating_s += self.silent_s
            else:
                self.first_count = count
            self.count, self.silent_s = count, 0.0
        return self.silent_s > self.patience_s

    def _read(self) -> int:
        try:
            return int(self.path.read_text() or 0)
        except (OSError, ValueError):  # not there yet, or caught while it is rewritten
            return self.count
