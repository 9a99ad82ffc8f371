"""What a worker does with a job, under a Claim; and what the controller does when the worker is lost.

A message says only that there is work: `claim_next` takes what is most urgent, `claim` one job by its id. A lost claim
(the row's fence has risen) changes nothing. Leases are compared by the database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs.db import db_now
from jobs.resources import Offer
from jobs.status import HELD, OUTCOMES, Reason, Request, Status, backoff_s
from jobs.store.moves import lock, move
from jobs.store.queueing import candidates, may_start
from jobs.tables import JobEventRow, JobRow, Json

MAX_RELEASES = 20  # more of them cost an attempt each, so that a job that is always given back comes to an end


@dataclass(frozen=True)
class Claim:
    """The right to run a job, good while the row's fence is this one. `run_seconds` are those of all claims before."""

    job_id: str
    attempt: int
    fence: int
    worker: str
    spec: Json
    events_offset: int
    run_seconds: float
    retry_of: str | None = None  # an ended job whose checkpoints this one goes on from


@dataclass(frozen=True)
class Heard:
    """What a heartbeat brings back: the job's status, and what is asked of it."""

    status: Status
    request: Request | None


def claim_next(s: Session, offer: Offer, lease_s: float) -> Claim | None:
    """Take the queued job that is most urgent among those this worker can run. None: there is none."""
    for job_id, attempt in candidates(s, offer, db_now(s)):
        if taken := claim(s, job_id, attempt, offer.worker, lease_s):
            return taken
    return None


def claim(s: Session, job_id: str, attempt: int, worker: str, lease_s: float) -> Claim | None:
    """Take this attempt at a job. None: someone else has it, it has ended, or it waits for something."""
    now = db_now(s)
    free = JobRow.id == job_id, JobRow.line.is_not(None), JobRow.attempt == attempt, may_start(now)
    row = lock(s, *free, skip_locked=True)
    if row is None:
        return None
    row = move(
        s,
        row,
        Status.RUNNING,
        None,
        now,
        fence=JobRow.fence + 1,
        worker=worker,
        lease_expires_at=now + timedelta(seconds=lease_s),
        heartbeat_at=now,
        claimed_at=now,
        started_at=func.coalesce(JobRow.started_at, now),
        not_before=None,
    )
    return Claim(row.id, row.attempt, row.fence, worker, row.spec, row.events_offset, row.run_seconds, row.retry_of)


def beat(s: Session, claim: Claim, lease_s: float) -> Heard | None:
    """Renew the lease and hear what is asked of the job. None: the claim is lost."""
    now = db_now(s)
    renewed = (
        update(JobRow)
        .where(*_holds(claim))
        .values(heartbeat_at=now, lease_expires_at=now + timedelta(seconds=lease_s), updated_at=now)
        .returning(JobRow.status, JobRow.request)
        .execution_options(synchronize_session=False)
    )
    found = s.execute(renewed).one_or_none()
    return None if found is None else Heard(Status(found.status), found.request and Request(found.request))


def restart_events(s: Session, claim: Claim, offset: int) -> bool:
    """Say that this host's events.jsonl holds only `offset` bytes: on another host it is new, and a power cut can
    shorten it. Events after that are new ones. False: the claim is lost."""
    row = lock(s, *_holds(claim))
    if row is None:
        return False
    row.events_offset = min(row.events_offset, offset)
    return True


def append_events(s: Session, claim: Claim, events: Sequence[tuple[Json, int]]) -> bool:
    """Copy events of the run folder, each with the offset after its line, into the history. False: the claim is lost.

    Events at or before the row's offset are already there and are left out, so the same batch may be sent again.
    """
    row = lock(s, *_holds(claim))
    if row is None:
        return False
    new = [(event, offset) for event, offset in events if offset > row.events_offset]
    if not new:
        return True
    now = db_now(s)
    s.add_all(
        JobEventRow(job_id=row.id, seq=row.last_seq + i, at=_time_of(event, now), type=event["type"], data=event)
        for i, (event, _) in enumerate(new, start=1)
    )
    row.progress = next((event for event, _ in reversed(new) if event["type"] == "progress"), row.progress)
    row.last_seq += len(new)
    row.events_offset = new[-1][1]
    row.tracking = "pending"  # MLflow lacks these
    row.updated_at = now
    s.flush()
    return True


def finish(
    s: Session,
    claim: Claim,
    reason: Reason,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
    backoff_base_s: float = 0.0,
) -> Status | None:
    """End the run as `status.OUTCOMES` says: for good, or queued again while attempts remain. None: the claim is lost.

    A job that is being cancelled becomes cancelled whatever the reason. `run_seconds` are those of all attempts, this
    one included. A further try waits for `status.backoff_s`.
    """
    row = lock(s, *_holds(claim))
    if row is None:
        return None
    now = db_now(s)
    return _end_claim(s, row, reason, now, result=result, error=error, run_seconds=run_seconds, base_s=backoff_base_s)


def release(s: Session, claim: Claim, run_seconds: float, reason: Reason = Reason.RELEASED) -> bool:
    """Give a job back with its attempt: the worker shuts down (RELEASED), or someone asked for it (PAUSED).

    It waits to be resumed where a pause is still asked for, and is queued otherwise. False: the claim is lost.
    """
    row = lock(s, *_holds(claim))
    if row is None:
        return False
    if reason is Reason.PAUSED and row.request != Request.PAUSE:  # taken back meanwhile
        reason = Reason.RELEASED
    _end_claim(s, row, reason, db_now(s), run_seconds=run_seconds)
    return True


def expire_leases(s: Session, *, now: datetime | None = None, limit: int = 100) -> list[str]:
    """Take jobs from workers that have not been heard of; returns their ids. `now` defaults to the database's clock."""
    now = now or db_now(s)
    lapsed = (JobRow.lease_expires_at.is_(None)) | (JobRow.lease_expires_at < now)
    query = select(JobRow).where(JobRow.status.in_(HELD), lapsed).order_by(JobRow.id).limit(limit)
    rows = list(s.scalars(query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}))
    for row in rows:
        heard_at = row.heartbeat_at or row.updated_at
        error = DsdError(
            f"The worker {row.worker} was not heard of since {heard_at:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Look at that machine: it may have been switched off, lost its network or run out of memory.",
        ).as_dict() | {"code": str(Reason.WORKER_LOST)}
        _end_claim(s, row, Reason.WORKER_LOST, now, error=error, run_seconds=row.run_seconds + _seconds_heard(row))
    return [row.id for row in rows]


def _holds(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status.in_(HELD)


def _end_claim(
    s: Session,
    row: JobRow,
    reason: Reason,
    now: datetime,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
    base_s: float = 0.0,
) -> Status:
    """Move a locked, claimed job to where `reason` takes it."""
    values: Json = {"lease_expires_at": None, "run_seconds": run_seconds, "crash_step": _crash_step(row, reason)}
    to, again = _where_to(row, reason)
    if to is Status.QUEUED:
        values |= {"fence": JobRow.fence + 1, "worker": None, "queued_at": now, "error": error, **again}
        values |= _waiting(row, reason, now, base_s)
    elif to is Status.SUCCEEDED:
        values |= {"finished_at": now, "result": result, "result_fence": row.fence, "error": None, "request": None}
    else:
        values |= {"fence": JobRow.fence + 1, "finished_at": now, "error": error, "request": None}
    if to is Status.CANCELLED:
        reason = Reason.CANCELLED_BY_USER
    return Status(move(s, row, to, reason, now, **values).status)


def _where_to(row: JobRow, reason: Reason) -> tuple[Status, Json]:
    if row.status == Status.CANCELLING:
        return Status.CANCELLED, {}
    if reason is Reason.RELEASED and row.releases < MAX_RELEASES:
        return Status.QUEUED, {"releases": JobRow.releases + 1}
    if OUTCOMES[reason].retry:
        again = row.attempt < row.max_attempts and not _struck_twice(row, reason)
        return (Status.QUEUED, {"attempt": JobRow.attempt + 1}) if again else (Status.FAILED, {})
    return OUTCOMES[reason].status, {}


def _waiting(row: JobRow, reason: Reason, now: datetime, base_s: float) -> Json:
    """How a job that is queued again waits: until it is resumed, for the end of its back-off, or not at all."""
    if row.request == Request.PAUSE:
        return {"paused_at": now, "request": None}
    wait_s = backoff_s(reason, row.attempt, base_s)
    return {"not_before": now + timedelta(seconds=wait_s)} if wait_s > 0 else {}


def _struck_twice(row: JobRow, reason: Reason) -> bool:
    return OUTCOMES[reason].once_a_step and row.crash_step is not None and row.crash_step == _step(row)


def _crash_step(row: JobRow, reason: Reason) -> int | None:
    return _step(row) if OUTCOMES[reason].once_a_step else row.crash_step


def _step(row: JobRow) -> int:
    """Steps over all phases that the job has told of."""
    return int((row.progress or {}).get("total_step", 0))


def _time_of(event: Json, otherwise: datetime) -> datetime:
    try:
        at = datetime.fromisoformat(event["at"])
    except (KeyError, TypeError, ValueError):
        return otherwise
    return at if at.tzinfo else otherwise


def _seconds_heard(row: JobRow) -> float:
    """From the claim to the last sign of life."""
    if row.claimed_at is None or row.heartbeat_at is None:
        return 0.0
    return max(0.0, (row.heartbeat_at - row.claimed_at).total_seconds())
