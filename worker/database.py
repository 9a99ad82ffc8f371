"""The database as a worker sees it: short transactions that may fail for a while, and never end a training run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from jobs import db

T = TypeVar("T")
FIRST_DELAY_S = 0.25


class Away(Exception):
    """The database cannot be reached or is locked; ask again later."""


class Database:
    """Runs functions of a session, each in one transaction.

    After a failure nothing is tried for a while, doubling up to `longest_delay_s`. That stays below the lease: when the
    database is back it must hear of the job before the controller gives it away.
    """

    def __init__(self, url: str, longest_delay_s: float) -> None:
        self._engine = db.make_engine(url)
        self._longest_delay_s = longest_delay_s
        self._delay_s = 0.0
        self._retry_at = 0.0  # time.monotonic()

    def __call__(self, work: Callable[[Session], T]) -> T:
        """What `work` returns, committed. Raises Away."""
        if time.monotonic() < self._retry_at:
            raise Away
        try:
            with db.begin(self._engine) as session:
                result = work(session)
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            self._delay_s = min(max(FIRST_DELAY_S, 2 * self._delay_s), self._longest_delay_s)
            self._retry_at = time.monotonic() + self._delay_s
            raise Away(str(error)) from error
        self._delay_s = 0.0
        return result

    def insist(self, work: Callable[[Session], T], give_up: Callable[[], bool], patience_s: float = 5.0) -> T:
        """As a call, but asks again until it works. Raises Away `patience_s` after `give_up` first says so."""
        deadline: float | None = None
        while True:
            try:
                return self(work)
            except Away:
                if deadline is None and give_up():
                    deadline = time.monotonic() + patience_s
                if deadline is not None and time.monotonic() > deadline:
                    raise
                time.sleep(max(0.01, self._retry_at - time.monotonic()))

    def close(self) -> None:
        self._engine.dispose()
