"""Copies between a run folder and its storage in a thread of their own, so that they never delay a sign of life."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Condition, Thread

from jobs.settings import Settings
from jobs.storage import Bucket, Storage
from worker.run_copy import INPUTS, RunCopy, TakenOver

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0

Input = tuple[str, str]  # a job, and a file or folder of its run


class Keeper:
    """Fetches a run folder, then stores it as often as `keep` asks, at once for all that asked meanwhile.

    What fails is tried again, after longer and longer times, until it works or `close` is called. A storage that is a
    folder has nothing to copy: there everything is done when it is asked for.
    """

    def __init__(self, settings: Settings, storage: Storage, job_id: str) -> None:
        self._settings = settings
        self._copy = RunCopy(storage, job_id, settings.run_dir(job_id)) if isinstance(storage, Bucket) else None
        self._changed = Condition()
        self._asked = self._done = 0
        self._closed = False

    def fetch(self, inputs: Sequence[Input] = ()) -> None:
        """Begin to make the folder the newest copy, with these inputs beside it. Call it once, before `keep`."""
        if self._copy is not None:
            Thread(target=self._work, args=(self._copy, inputs), name="keeper", daemon=True).start()
            self.keep()

    def input(self, job_id: str, name: str) -> Path:
        """Where a fetched input lies on this host."""
        folder = self._settings.run_dir(job_id) if self._copy is None else self._copy.folder / INPUTS / job_id
        return folder / name

    def keep(self) -> None:
        """Store soon what the folder holds then."""
        with self._changed:
            self._asked += self._copy is not None
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Whether all that was asked for is done, now or within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._done == self._asked, timeout_s)

    def close(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def delete(self) -> None:
        """Delete this host's copy, where there is one beside the storage."""
        if self._copy is not None:
            self._copy.delete()

    def _work(self, copy: RunCopy, inputs: Sequence[Input]) -> None:
        fetched, delay_s = False, 0.0
        while (asked := self._next(delay_s)) is not None:
            try:
                if fetched:
                    copy.keep(ended=lambda: self._closed)
                else:
                    copy.fetch(inputs)
            except TakenOver:
                log.warning("keeper.taken_over folder=%s", copy.folder)
                return
            except Exception as error:  # whatever it is: a thread that ends would leave the job waiting without end
                delay_s = min(max(FIRST_DELAY_S, 2 * delay_s), LONGEST_DELAY_S)
                log.warning("keeper.waits folder=%s delay_s=%.1f error=%s", copy.folder, delay_s, error)
            else:
                fetched, delay_s = True, 0.0
                self._finished(asked)

    def _next(self, delay_s: float) -> int | None:
        """The number of the newest request, after `delay_s` and once there is one; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, delay_s)
            self._changed.wait_for(lambda: self._closed or self._asked > self._done)
            return None if self._closed else self._asked

    def _finished(self, asked: int) -> None:
        with self._changed:
            self._done = asked
            self._changed.notify_all()
