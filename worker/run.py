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
from dsd_core.spec import parse_spec
from jobs import store
from jobs.settings import Settings
from jobs.status import TERMINAL, Reason, Request
from jobs.storage import Bucket, storage_of
from worker import launch
from worker.database import Away, Database
from worker.keeper import Keeper
from worker.outcome import Asked, Error, outcome
from worker.run_copy import sweep
from worker.run_folder import Tail, log_tail, prepare, registered_teacher

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
    storage = storage_of(settings)
    database = Database(settings.db_url, longest_delay_s=settings.heartbeat_s)
    try:
        claim = database.insist(lambda s: store.claim(s, job_id, attempt, worker, settings.lease_s), stopping)
        if claim is None:
            log.info("job.not_claimed id=%s attempt=%s", job_id, attempt)
            return None
        log.info("job.claimed id=%s attempt=%s fence=%s", job_id, attempt, claim.fence)
        run = Run(settings, database, claim, stopping, Keeper(settings, storage, claim.job_id))
        reason = _attempt(run, command)
        if isinstance(storage, Bucket):
            _tidy(run, storage)
        return reason
    except Away as error:
        log.error("job.abandoned id=%s attempt=%s error=%s", job_id, attempt, error)
        return None
    finally:
        database.close()


def _attempt(run: Run, command: Sequence[str]) -> Reason | None:
    try:
        exit_code = _run_child(run, command)
        reason, error = outcome(exit_code, run.tail.last, run.asked)
        reason = reason if run.lost else _store(run, reason)
    except DsdError as failure:
        reason, error = Reason(failure.code), failure.as_dict()
    finally:
        run.keeper.close()
    if run.lost:
        log.warning("job.lost id=%s attempt=%s", run.claim.job_id, run.claim.attempt)
        return None
    return _finish(run, reason, error)


@dataclass
class Run:
    """What this worker knows about its attempt."""

    settings: Settings
    database: Database
    claim: store.Claim
    stopping: Callable[[], bool]
    keeper: Keeper
    started: float = field(default_factory=time.monotonic)
    asked: Asked | None = None  # why we told the child to stop
    lost: bool = False  # someone else has the job now
    beat_at: float = 0.0
    stop_by: float | None = None  # time.monotonic(): when the grace of what was asked to stop ends

    def __post_init__(self) -> None:
        self.tail = Tail(self.folder / "events.jsonl", self.claim.events_offset)

    def insist(self, work: Callable[[Session], T]) -> T:
        return self.database.insist(work, self.stopping)

    @property
    def folder(self) -> Path:
        return self.settings.run_dir(self.claim.job_id)

    @property
    def period_s(self) -> float:
        """Between two looks at what is awaited."""
        return min(COPY_S, self.settings.heartbeat_s)

    @property
    def run_seconds(self) -> float:
        """Of all attempts, up to now."""
        return self.claim.run_seconds + time.monotonic() - self.started

    @property
    def over_time(self) -> bool:
        limit_s = self.claim.spec.get("max_runtime_s")
        return limit_s is not None and self.run_seconds > limit_s


def _run_child(run: Run, command: Sequence[str]) -> int:
    """The exit code; 0 where we lost the job, or were asked to stop it, before the child could start."""
    child = _start(run, command)
    if child is None:
        return 0
    try:
        exit_code = _follow(run, child)
    finally:
        launch.kill(child)
    _copy(run, run.insist)
    return exit_code


def _start(run: Run, command: Sequence[str]) -> launch.Child | None:
    """Fetch what the child goes on from, and start it."""
    spec = parse_spec(run.claim.spec)
    model = run.insist(lambda s: registered_teacher(s, spec))
    left = launch.end_leftovers(run.claim.job_id)
    if left:
        log.warning("job.leftovers_killed id=%s processes=%s", run.claim.job_id, left)
    run.keeper.fetch([(model.job_id, "student")] if model else [])
    while not run.keeper.wait(run.period_s):
        if not _goes_on(run):
            return None
    teacher = run.keeper.input(model.job_id, "student") / "model.safetensors" if model else None
    arguments = prepare(run.folder, run.claim.spec, teacher)
    _find_place(run)
    return launch.start([*command, *arguments], job_id=run.claim.job_id, log=run.folder / "log.txt")


def _find_place(run: Run) -> None:
    """Events are copied from where the database has them up to; on another host, or after a power cut, the file may end
    before that, and what will be appended is new all the same."""
    end = run.tail.end
    if end < run.tail.offset:
        log.warning("events.shorter id=%s copied=%s there=%s", run.claim.job_id, run.tail.offset, end)
        run.insist(lambda s: store.restart_events(s, run.claim, end))
        run.tail.offset = end
    run.tail.skip_to_fresh()


def _goes_on(run: Run) -> bool:
    """Show a sign of life. False: the job is lost, or was asked to stop."""
    try:
        _beat(run)
    except Away as error:
        log.warning("job.database_away id=%s error=%s", run.claim.job_id, error)
    run.asked = run.asked or _why_stop(run)
    return not (run.lost or run.asked)


def _follow(run: Run, child: launch.Child) -> int:
    """Copy, beat and pass on requests until the child has ended; kills it at once when the claim is lost."""
    while (exit_code := child.wait(run.period_s)) is None:
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
            run.stop_by = run.stop_by or time.monotonic() + run.settings.grace_s
            launch.ask_to_stop(child)
            launch.kill_after(child, run.settings.grace_s)
    return exit_code


def _copy(run: Run, transaction: Transaction) -> None:
    """Bring the child's new events to the database. Where it is away they stay in the file."""
    while not run.lost and (batch := run.tail.read(BATCH)):
        run.lost = not transaction(partial(store.append_events, claim=run.claim, events=batch))
        run.tail.copied(batch)
        if any(event["type"] in ("checkpoint", "picture") for event, _ in batch):
            run.keeper.keep()


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


def _store(run: Run, reason: Reason) -> Reason:
    """Wait until the storage has what the child left: without end for a student, which counts only when it is there,
    else for the grace period. Returns the reason, RELEASED where a shutdown leaves no time to store the student."""
    stop_by = run.stop_by
    run.keeper.keep()
    while not run.keeper.wait(run.period_s):
        _goes_on(run)
        if run.lost or run.asked == Reason.CANCELLED_BY_USER:
            break
        if reason == Reason.FINISHED and not run.stopping():
            continue
        stop_by = stop_by or time.monotonic() + run.settings.grace_s
        if time.monotonic() > stop_by:
            log.warning("job.not_stored id=%s: the storage lacks what was written last", run.claim.job_id)
            return Reason.RELEASED if reason == Reason.FINISHED else reason
    return reason


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


def _tidy(run: Run, bucket: Bucket) -> None:
    """Delete this host's copies of jobs that have ended, this one's first."""

    def has_ended(job_id: str) -> bool:
        row = run.database(lambda s: store.get(s, job_id))
        return row is not None and row.status in TERMINAL

    try:
        if run.keeper.wait(0) and has_ended(run.claim.job_id):
            run.keeper.delete()
        sweep(bucket, run.settings.storage_dir / "runs", has_ended)
    except Away:
        log.warning("job.not_tidied id=%s", run.claim.job_id)
