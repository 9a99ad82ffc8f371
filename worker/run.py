"""One attempt at a job, from the claim to the row that says why it ended.

The parent never trains: it starts a child, copies the child's events to the database, shows signs of life, and passes
requests to stop on. It may die at any instruction: the next attempt goes on from the run folder and the database.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs import store
from jobs.settings import Settings
from jobs.status import Reason, Request
from worker import launch
from worker.database import Away, Database
from worker.inheritance import forerunners, inherit
from worker.outcome import Asked, Error, outcome
from worker.run_folder import Tail, log_tail, prepare

log = logging.getLogger(__name__)

TRAINING = (sys.executable, "-m", "dsd_core", "run")
COPY_S = 1.0  # between two looks at the child's events, so that a watcher sees them live
BATCH = 500  # events in one transaction

T = TypeVar("T")
Transaction = Callable[[Callable[[Session], bool]], bool]


def run_job(
    settings: Settings,
    job_id: str,
    attempt: int,
    *,
    worker: str,
    stopping: Callable[[], bool] = lambda: False,
    command: Sequence[str] = TRAINING,
) -> Reason | None:
    """Run one attempt and return why it ended; None when it is not ours to run, or was taken from us.

    `stopping` says that this worker is being shut down. `command` gets the spec file, `--out` and the run folder.
    """
    database = Database(settings.db_url, longest_delay_s=settings.heartbeat_s)
    try:
        claim = database.insist(lambda s: store.claim(s, job_id, attempt, worker, settings.lease_s), stopping)
        if claim is None:
            log.info("job.not_claimed id=%s attempt=%s", job_id, attempt)
            return None
        log.info("job.claimed id=%s attempt=%s fence=%s", job_id, attempt, claim.fence)
        run = Run(settings, database, claim, stopping)
        try:
            child = _start(run, command)
        except DsdError as error:
            return _finish(run, Reason(error.code), error.as_dict())
        try:
            exit_code = _follow(run, child)
        finally:
            launch.kill(child)
        _copy(run, run.insist)
        if run.lost:
            log.warning("job.lost id=%s attempt=%s", job_id, attempt)
            return None
        return _finish(run, *outcome(exit_code, run.tail.last, run.asked))
    except Away as error:
        log.error("job.abandoned id=%s attempt=%s error=%s", job_id, attempt, error)
        return None
    finally:
        database.close()


@dataclass
class Run:
    """What this worker knows about its attempt."""

    settings: Settings
    database: Database
    claim: store.Claim
    stopping: Callable[[], bool]
    started: float = field(default_factory=time.monotonic)
    asked: Asked | None = None  # why we told the child to stop
    lost: bool = False  # someone else has the job now
    beat_at: float = 0.0

    def __post_init__(self) -> None:
        self.tail = Tail(self.folder / "events.jsonl", self.claim.events_offset)

    def insist(self, work: Callable[[Session], T]) -> T:
        return self.database.insist(work, self.stopping)

    @property
    def folder(self) -> Path:
        return self.settings.run_dir(self.claim.job_id)

    @property
    def run_seconds(self) -> float:
        """Of all attempts, up to now."""
        return self.claim.run_seconds + time.monotonic() - self.started

    @property
    def over_time(self) -> bool:
        limit_s = self.claim.spec.get("max_runtime_s")
        return limit_s is not None and self.run_seconds > limit_s


def _start(run: Run, command: Sequence[str]) -> launch.Child:
    arguments = run.insist(lambda s: prepare(s, run.settings, run.claim))
    inherit(run.folder, map(run.settings.run_dir, run.insist(lambda s: forerunners(s, run.claim))))
    left = launch.end_leftovers(run.claim.job_id)
    if left:
        log.warning("job.leftovers_killed id=%s processes=%s", run.claim.job_id, left)
    run.tail.skip_to_fresh()
    return launch.start([*command, *arguments], job_id=run.claim.job_id, log=run.folder / "log.txt")


def _follow(run: Run, child: launch.Child) -> int:
    """Copy, beat and pass on requests until the child has ended; kills it at once when the claim is lost."""
    period_s = min(COPY_S, run.settings.heartbeat_s)
    while (exit_code := child.wait(period_s)) is None:
        try:
            _copy(run, run.database)
            _beat(run)
        except Away as error:
            log.warning("job.database_away id=%s error=%s", run.claim.job_id, error)
        if run.lost:
            launch.kill(child)
            return child.process.wait()
        run.asked = run.asked or _why_stop(run)
        if run.asked is not None:
            launch.ask_to_stop(child)
            launch.kill_after(child, run.settings.grace_s)
    return exit_code


def _copy(run: Run, transaction: Transaction) -> None:
    """Bring the child's new events to the database. Where it is away they stay in the file."""
    while not run.lost and (batch := run.tail.read(BATCH)):
        run.lost = not transaction(partial(store.append_events, claim=run.claim, events=batch))
        run.tail.copied(batch)


def _beat(run: Run) -> None:
    if time.monotonic() < run.beat_at:
        return
    heard = run.database(lambda s: store.beat(s, run.claim, run.settings.lease_s))
    run.beat_at = time.monotonic() + run.settings.heartbeat_s
    run.lost = run.lost or heard is None
    if heard is not None and heard.request is Request.CANCEL:
        run.asked = Reason.CANCELLED_BY_USER


def _why_stop(run: Run) -> Asked | None:
    if run.stopping():
        return Reason.RELEASED
    return Reason.MAX_RUNTIME if run.over_time else None


def _finish(run: Run, reason: Reason, error: Error | None) -> Reason | None:
    """Write the outcome down. None: the claim was lost before that."""
    if reason == Reason.RELEASED:
        held = run.insist(lambda s: store.release(s, run.claim, run.run_seconds))
    else:
        result = run.tail.last["result"] if reason == Reason.FINISHED and run.tail.last else None
        error = error and {**error, "log_tail": log_tail(run.folder / "log.txt")}
        end = partial(
            store.finish, claim=run.claim, reason=reason, result=result, error=error, run_seconds=run.run_seconds
        )
        held = run.insist(end) is not None
    log.info("job.ended id=%s attempt=%s reason=%s held=%s", run.claim.job_id, run.claim.attempt, reason, held)
    return reason if held else None
