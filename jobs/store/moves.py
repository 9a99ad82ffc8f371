"""The one place where a status moves: a guarded UPDATE and its line in the history, in the caller's transaction.

What follows from a move happens in the same transaction: a queued job stands in its line and is announced, one that
has ended frees or fails the jobs that need it and writes to its webhook.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs.status import MOVES, TERMINAL, Reason, Status
from jobs.store.queueing import settle
from jobs.tables import JobEventRow, JobNeedRow, JobRow, Json, WebhookRow


def lock(s: Session, *where: ColumnElement[bool], skip_locked: bool = False) -> JobRow | None:
    """The row as it is now, kept from other writers until the transaction ends. (SQLite's writer holds everything.)

    `skip_locked`: None also where another writer has it.
    """
    query = select(JobRow).where(*where).with_for_update(skip_locked=skip_locked)
    return s.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def move(s: Session, row: JobRow, to: Status, reason: Reason | None, now: datetime, **values: Any) -> JobRow:
    """Move the status of a locked row, and write it into the history. Legal moves only: `status.MOVES`.

    Status and fence are guarded once more in the UPDATE: sqlalchemy.exc.NoResultFound says that the row was not locked.
    """
    before, fence, worker = Status(row.status), row.fence, row.worker
    assert (before, to) in MOVES, f"{before} -> {to} is no legal move"
    values = {"line": None, "last_seq": JobRow.last_seq + 1, "tracking": "pending", "updated_at": now} | values
    after = s.scalars(
        update(JobRow)
        .where(JobRow.id == row.id, JobRow.status == before, JobRow.fence == fence)
        .values(status=to, reason=reason, **values)
        .returning(JobRow),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one()
    record_move(s, after, before, after.worker or worker, now)
    if Status.QUEUED in (before, to):
        settle(s, after, now)
    if to in TERMINAL:
        _tell_dependents(s, after, now)
        _tell_webhook(s, after, now)
    return after


def record_move(s: Session, row: JobRow, before: Status | None, worker: str | None, now: datetime) -> None:
    """`attempt` and `fence` are those after the move; `worker` is who had or has the job."""
    data = {
        "from": before,
        "to": row.status,
        "reason": row.reason,
        "attempt": row.attempt,
        "fence": row.fence,
        "worker": worker,
    }
    s.add(JobEventRow(job_id=row.id, seq=row.last_seq, at=now, type="status", data=data))
    s.flush()


def record_request(s: Session, row: JobRow, now: datetime, data: Json) -> None:
    """Write what someone asked of a locked job into its history."""
    row.last_seq += 1
    row.tracking = "pending"
    row.updated_at = now
    s.add(JobEventRow(job_id=row.id, seq=row.last_seq, at=now, type="request", data=data))
    s.flush()


def needs_left(s: Session, job_id: str) -> int:
    """How many of the jobs it needs have not succeeded."""
    query = select(func.count()).select_from(JobNeedRow).join(JobRow, JobRow.id == JobNeedRow.need_id)
    return s.execute(query.where(JobNeedRow.job_id == job_id, JobRow.status != Status.SUCCEEDED)).scalar_one()


def _tell_dependents(s: Session, ended: JobRow, now: datetime) -> None:
    """Jobs that waited for this one alone stand in line now; where it did not succeed, they fail with it."""
    for job_id in _dependents(s, ended.id):  # in the order of ids, as everyone locks them
        row = lock(s, JobRow.id == job_id, JobRow.status == Status.QUEUED)
        if row is None:
            continue
        if ended.status == Status.SUCCEEDED:
            row.needs_left = needs_left(s, row.id)
            settle(s, row, now)
        else:
            move(s, row, Status.FAILED, Reason.NEED_FAILED, now, finished_at=now, error=need_failed(ended).as_dict())


def _dependents(s: Session, job_id: str) -> Sequence[str]:
    query = select(JobNeedRow.job_id).where(JobNeedRow.need_id == job_id).order_by(JobNeedRow.job_id)
    return s.scalars(query).all()


class NeedFailedError(DsdError):
    """A job this one needs did not succeed."""

    code = str(Reason.NEED_FAILED)


def need_failed(need: JobRow) -> NeedFailedError:
    return NeedFailedError(
        f"It needs job {need.id} ({need.name}), which has {_HAS[Status(need.status)]}.",
        field="/needs",
        hint="Retry that job, then clone this one with the new id.",
    )


_HAS = {Status.FAILED: "failed", Status.CANCELLED: "been cancelled"}


def _tell_webhook(s: Session, row: JobRow, now: datetime) -> None:
    url = row.spec.get("webhook")
    if url is None:
        return
    payload = {"job_id": row.id, "name": row.name, "status": row.status, "reason": row.reason, "at": now.isoformat()}
    s.add(WebhookRow(job_id=row.id, url=url, payload=payload, created_at=now, next_try_at=now))
    s.flush()
