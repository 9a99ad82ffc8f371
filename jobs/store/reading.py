"""Looking at jobs, and asking for their end."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs.db import db_now
from jobs.status import TERMINAL, Reason, Status
from jobs.store.moves import lock, move
from jobs.tables import JobEventRow, JobRow, Json


class JobNotFound(DsdError):
    """There is no such job."""

    code: ClassVar[str] = "job_not_found"


class NotCancellable(DsdError):
    """The job has already ended."""

    code: ClassVar[str] = "not_cancellable"

    def __init__(self, status: Status) -> None:
        super().__init__(f"The job has already ended: it is {status}.")
        self.status = status


def get(s: Session, job_id: str) -> JobRow | None:
    return s.get(JobRow, job_id, populate_existing=True)


def list_page(
    s: Session,
    *,
    limit: int,
    after: str | None = None,
    status: str | None = None,
    name: str | None = None,
    kind: str | None = None,
    label: tuple[str, str] | None = None,
) -> tuple[list[JobRow], bool]:
    """Jobs older than the id `after`, newest first, and whether there are more. `label` is a key and its value."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(JobRow.id < after)
    for column, wanted in ((JobRow.status, status), (JobRow.name, name), (JobRow.kind, kind)):
        if wanted is not None:
            query = query.where(column == wanted)
    if label is not None:
        query = query.where(JobRow.labels[label[0]].as_string() == label[1])
    rows = list(s.scalars(query))
    return rows[:limit], len(rows) > limit


def queue_position(s: Session, row: JobRow) -> int | None:
    """1 for the job that was queued first; None for one that is not queued."""
    if row.status != Status.QUEUED:
        return None
    earlier = (JobRow.queued_at < row.queued_at) | ((JobRow.queued_at == row.queued_at) & (JobRow.id < row.id))
    query = select(func.count()).select_from(JobRow).where(JobRow.status == Status.QUEUED, earlier)
    return 1 + s.execute(query).scalar_one()


def request_cancel(s: Session, job_id: str) -> JobRow:
    """End a queued job, or ask a running one to end; once this is committed the job cannot succeed.

    Asking again changes nothing. Raises JobNotFound, and NotCancellable where the job has ended.
    """
    row = lock(s, JobRow.id == job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
    status = Status(row.status)
    if status in TERMINAL:
        raise NotCancellable(status)
    if status is Status.CANCELLING:
        return row
    now = db_now(s)
    if status is Status.QUEUED:
        ended: Json = {"cancel_requested_at": now, "finished_at": now}
        return move(s, row, Status.CANCELLED, Reason.CANCELLED_BY_USER, now, **ended)
    return move(s, row, Status.CANCELLING, Reason.CANCELLED_BY_USER, now, cancel_requested_at=now)


def events_after(
    s: Session, job_id: str, seq: int, limit: int, types: Collection[str] | None = None
) -> list[JobEventRow]:
    """The history after `seq`, oldest first; of some types only where `types` is given."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
    if types is not None:
        query = query.where(JobEventRow.type.in_(types))
    return list(s.scalars(query.order_by(JobEventRow.seq).limit(limit)))
