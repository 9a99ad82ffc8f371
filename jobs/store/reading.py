"""Looking at jobs."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from jobs.tables import JobEventRow, JobLabelRow, JobRow


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
    group: str | None = None,
    label: tuple[str, str] | None = None,
) -> tuple[list[JobRow], bool]:
    """Jobs older than the id `after`, newest first, and whether there are more. `label` is a key and its value."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(JobRow.id < after)
    wishes = ((JobRow.status, status), (JobRow.name, name), (JobRow.kind, kind), (JobRow.group, group))
    for column, wanted in wishes:
        if wanted is not None:
            query = query.where(column == wanted)
    if label is not None:
        has = JobLabelRow.job_id == JobRow.id, JobLabelRow.key == label[0], JobLabelRow.value == label[1]
        query = query.join(JobLabelRow, and_(*has))
    rows = list(s.scalars(query))
    return rows[:limit], len(rows) > limit


class Head(NamedTuple):
    """How far a job's history reaches, and where the job is."""

    id: str
    status: str
    reason: str | None
    last_seq: int


def heads(s: Session, job_ids: Collection[str]) -> list[Head]:
    """The heads of those of these jobs that there are."""
    query = select(JobRow.id, JobRow.status, JobRow.reason, JobRow.last_seq).where(JobRow.id.in_(job_ids))
    return [Head(*row) for row in s.execute(query)]


def events_after(
    s: Session, job_id: str, seq: int, limit: int, types: Collection[str] | None = None
) -> list[JobEventRow]:
    """The history after `seq`, oldest first; of some types only where `types` is given."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
    if types is not None:
        query = query.where(JobEventRow.type.in_(types))
    return list(s.scalars(query.order_by(JobEventRow.seq).limit(limit)))
