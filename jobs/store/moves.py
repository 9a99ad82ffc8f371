"""The one place where a status moves: a guarded UPDATE and its line in the history, in the caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from jobs.status import MOVES, Reason, Status
from jobs.tables import JobEventRow, JobRow, OutboxRow


def lock(s: Session, *where: ColumnElement[bool]) -> JobRow | None:
    """The row as it is now, kept from other writers until the transaction ends. (SQLite's writer holds everything.)"""
    query = select(JobRow).where(*where).with_for_update()
    return s.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def move(s: Session, row: JobRow, to: Status, reason: Reason | None, now: datetime, **values: Any) -> JobRow:
    """Move the status of a locked row, and write it into the history. Legal moves only: `status.MOVES`.

    Status and fence are guarded once more in the UPDATE: sqlalchemy.exc.NoResultFound says that the row was not locked.
    """
    before, fence, worker = Status(row.status), row.fence, row.worker
    assert (before, to) in MOVES, f"{before} -> {to} is no legal move"
    after = s.scalars(
        update(JobRow)
        .where(JobRow.id == row.id, JobRow.status == before, JobRow.fence == fence)
        .values(status=to, reason=reason, last_seq=JobRow.last_seq + 1, tracking="pending", updated_at=now, **values)
        .returning(JobRow),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one()
    record_move(s, after, before, after.worker or worker, now)
    if before is Status.QUEUED:
        s.execute(delete(OutboxRow).where(OutboxRow.job_id == after.id))
    if to is Status.QUEUED:
        announce(s, after, now)
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


def announce(s: Session, row: JobRow, now: datetime) -> None:
    s.add(OutboxRow(job_id=row.id, attempt=row.attempt, created_at=now, next_try_at=now))
    s.flush()
