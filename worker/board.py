"""What the processes of one worker tell each other, in memory that they share from the fork: no lock, nothing to tidy.

The parent says that the worker is shut down or emptied, the process with the job says which it is.
"""

from __future__ import annotations

import mmap

from jobs.status import Drain

JOB = slice(2, 42)
DRAINS = (None, *Drain)


class Board:
    """Make it before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, JOB.stop)

    @property
    def shutting_down(self) -> bool:
        return self._memory[0] != 0

    @shutting_down.setter
    def shutting_down(self, value: bool) -> None:
        self._memory[0] = value

    @property
    def drain(self) -> Drain | None:
        return DRAINS[self._memory[1]]

    @drain.setter
    def drain(self, value: Drain | None) -> None:
        self._memory[1] = DRAINS.index(value)

    @property
    def job_id(self) -> str | None:
        """The job that runs."""
        return self._memory[JOB].rstrip(b"\0").decode() or None

    @job_id.setter
    def job_id(self, value: str | None) -> None:
        self._memory[JOB] = (value or "").encode().ljust(JOB.stop - JOB.start, b"\0")

    @property
    def takes_jobs(self) -> bool:
        return not self.shutting_down and self.drain is None

    @property
    def gives_back(self) -> bool:
        """The job that runs is to be given back, with a checkpoint."""
        return self.shutting_down or self.drain is Drain.NOW
