"""The idle side of a worker, in its parent process: every heartbeat it says that it is there and what it runs.

It hears whether the worker is to be emptied, and notices when the worker is deaf: consumers have been seen to stay
connected to the broker and hear nothing more.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Lock

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobs import db, store
from jobs.resources import Offer
from jobs.settings import Settings
from jobs.status import Drain
from worker.board import Board
from worker.ears import Ears

log = logging.getLogger(__name__)


class Life:
    """Of one worker; `beat` is a round of it."""

    def __init__(self, settings: Settings, offer: Offer, board: Board, ears: Ears) -> None:
        self.settings, self.offer, self.board, self.ears = settings, offer, board, ears
        self.idle_since: float | None = None  # time.monotonic(): since then it could have had a job
        self._known = False
        self._engine = db.make_engine(settings.db_url)
        self._working = Lock()
        # A process forked while another thread holds a lock of the database's library would wait for it for ever.
        os.register_at_fork(
            before=self._working.acquire, after_in_parent=self._working.release, after_in_child=self._working.release
        )

    def run(self) -> None:
        """Beat until the worker is deaf."""
        while not self.deaf():
            try:
                with self._working:
                    self.beat()
            except (SQLAlchemyError, store.WorkerNotFound) as error:
                log.warning("worker.unheard error=%s", error)
                self.idle_since = None
            time.sleep(self.settings.heartbeat_s)

    def beat(self) -> None:
        """One sign of life, and what comes back.

        A message may have gone to a worker that cannot run the job: one that is idle for a second round while there is
        work for it reminds itself.
        """
        with db.begin(self._engine) as s:
            drain, work = self._beat(s), store.has_work(s, self.offer)
        self._obey(drain)
        if not work or not self.board.takes_jobs or self.board.job_id is not None:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = time.monotonic()
        else:
            self.ears.remind()

    def deaf(self) -> bool:
        """It has had nothing to do for long while there was work for it, and the broker, which told it, is there."""
        since = self.idle_since
        if since is None or time.monotonic() - since < self.settings.deaf_s or not self.ears.broker_answers():
            return False
        log.error("worker.deaf: jobs wait that it could run, and for %s s no message has come", self.settings.deaf_s)
        return True

    def _beat(self, s: Session) -> Drain | None:
        if not self._known:
            store.register_worker(s, self.offer)
            self._known = True
        try:
            return store.worker_beat(s, self.offer.worker, self.board.job_id)
        except store.WorkerNotFound:  # forgotten while the database was away for a day
            self._known = False
            raise

    def _obey(self, drain: Drain | None) -> None:
        if drain == self.board.drain:
            return
        log.info("worker.drain how=%s", drain)
        self.board.drain = drain
        self.ears.listen(drain is None)
