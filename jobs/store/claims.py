"""What a worker does with a job, under a Claim; and what the controller does when the worker is lost.

A lost claim (the row's fence has risen) changes nothing. Leases are compared by the database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs.db import db_now
from jobs.status import OUTCOMES, Reason, Status
from jobs.store.moves import lock, move
from jobs.tables import JobEventRow, JobRow, Json

MAX_RELEASES = 20  # more of them cost an attempt each, so that a job that is always given back comes to an end
CLAIMED = (Status.RUNNING, Status.CANCELLING)


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


def claim(s: Session, job_id: str, attempt: int, worker: str, lease_s: float) -> Claim | None:
    """Take a queued job. None: someone else has it, it has ended, or the message was of another attempt."""
    row = lock(s, JobRow.id == job_id, JobRow.status == Status.QUEUED, JobRow.attempt == attempt)
    if row is None:
        return None
    now = db_now(s)
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
        started_at=func.coalesce(JobRow.started_at, now),
    )
    return Claim(row.id, row.attempt, row.fence, worker, row.spec, row.events_offset, row.run_seconds)


def beat(s: Session, claim: Claim, lease_s: float) -> Status | None:
    """Renew the lease and hear the status, which is how a cancel arrives. None: the claim is lost."""
    now = db_now(s)
    renewed = (
        update(JobRow)
        .where(*_holds(claim))
        .values(heartbeat_at=now, lease_expires_at=now + timedelta(seconds=lease_s), updated_at=now)
        .returning(JobRow.status)
        .execution_options(synchronize_session=False)
    )
    status = s.execute(renewed).scalar_one_or_none()
    return None if status is None else Status(status)


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


def restart_events(s: Session, claim: Claim, offset: int) -> bool:
    """Take events from `offset` on as new: the file has lost what stood there. False: the claim is lost."""
    row = lock(s, *_holds(claim))
    if row is not None:
        row.events_offset = min(offset, row.events_offset)
    return row is not None


def finish(
    s: Session,
    claim: Claim,
    reason: Reason,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
) -> Status | None:
    """End the run as `status.OUTCOMES` says: for good, or queued again while attempts remain. None: the claim is lost.

    A job that is being cancelled becomes cancelled whatever the reason. `run_seconds` are those of all attempts, this
    one included.
    """
    row = lock(s, *_holds(claim))
    if row is None:
        return None
    return _end_claim(s, row, reason, db_now(s), result=result, error=error, run_seconds=run_seconds)


def release(s: Session, claim: Claim, run_seconds: float) -> bool:
    """Give a job back because the worker shuts down; the attempt is not consumed. False: the claim is lost."""
    row = lock(s, *_holds(claim))
    if row is None:
        return False
    _end_claim(s, row, Reason.RELEASED, db_now(s), run_seconds=run_seconds)
    return True


def expire_leases(s: Session, *, now: datetime | None = None, limit: int = 100) -> list[str]:
    """Take jobs from workers that have not been heard of; returns their ids. `now` defaults to the database's clock."""
    now = now or db_now(s)
    lapsed = (JobRow.lease_expires_at.is_(None)) | (JobRow.lease_expires_at < now)
    query = select(JobRow).where(JobRow.status.in_(CLAIMED), lapsed).order_by(JobRow.id).limit(limit)
    rows = list(s.scalars(query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}))
    for row in rows:
        heard_at = row.heartbeat_at or row.updated_at
        error = DsdError(
            f"The worker {row.worker} was not heard of since {heard_at:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Look at that machine: it may have been switched off, lost its network or run out of memory.",
        ).as_dict() | {"code": str(Reason.WORKER_LOST)}
        _end_claim(s, row, Reason.WORKER_LOST, now, error=error, run_seconds=row.run_seconds + _seconds_heard(s, row))
    return [row.id for row in rows]


def _holds(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status.in_(CLAIMED)


def _end_claim(
    s: Session,
    row: JobRow,
    reason: Reason,
    now: datetime,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
) -> Status:
    """Move a locked, claimed job to where `reason` takes it."""
    values: Json = {"lease_expires_at": None, "run_seconds": run_seconds}
    to, again = _where_to(row, reason)
    if to is Status.QUEUED:
        values |= {"fence": JobRow.fence + 1, "worker": None, "queued_at": now, "error": error, **again}
    elif to is Status.SUCCEEDED:
        values |= {"finished_at": now, "result": result, "result_fence": row.fence, "error": None}
    else:
        values |= {"fence": JobRow.fence + 1, "finished_at": now, "error": error}
    if to is Status.CANCELLED:
        reason = Reason.CANCELLED_BY_USER
    return Status(move(s, row, to, reason, now, **values).status)


def _where_to(row: JobRow, reason: Reason) -> tuple[Status, Json]:
    if row.status == Status.CANCELLING:
        return Status.CANCELLED, {}
    if reason is Reason.RELEASED and row.releases < MAX_RELEASES:
        return Status.QUEUED, {"releases": JobRow.releases + 1}
    if reason is Reason.RELEASED or OUTCOMES[reason].retry:
        again = row.attempt < row.max_attempts
        return (Status.QUEUED, {"attempt": JobRow.attempt + 1}) if again else (Status.FAILED, {})
    return OUTCOMES[reason].status, {}


def _time_of(event: Json, otherwise: datetime) -> datetime:
    try:
        at = datetime.fromisoformat(event["at"])
    except (KeyError, TypeError, ValueError):
        return otherwise
    return at if at.tzinfo else otherwise


def _seconds_heard(s: Session, row: JobRow) -> float:
    """From the claim to the last sign of life."""
    moves = select(JobEventRow).where(JobEventRow.job_id == row.id, JobEventRow.type == "status")
    claimed = (e for e in s.scalars(moves.order_by(JobEventRow.seq.desc())) if e.data["to"] == Status.RUNNING)
    began = next(claimed, None)
    if began is None or row.heartbeat_at is None:
        return 0.0
    return max(0.0, (row.heartbeat_at - began.at).total_seconds())
