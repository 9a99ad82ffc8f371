"""Where jobs wait. Those of one line are alike to every worker, so each line is first come, first served.

A line is a priority, a group and a demand. There are few of them, however many jobs wait: who looks for work looks at
the head of each. A job without a line cannot be claimed: it runs, it has ended, it is paused, or it waits for others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from jobs.db import db_now
from jobs.resources import Offer, demand_of, fits
from jobs.status import HELD, Status
from jobs.tables import JobRow, OutboxRow

HIGHEST = 100  # priority
CROWD = 32  # jobs of a line that others may take between a look and a claim


def line_of(row: JobRow) -> str:
    """The line of a job that can be claimed. Lines sort by priority, the highest first."""
    demand = hashlib.sha256(str(demand_of(row.spec)).encode()).hexdigest()[:16]
    return f"{_rank(row.priority)} {row.group} {demand}"


def settle(s: Session, row: JobRow, now: datetime) -> None:
    """Put a locked job into its line and announce it, or take it out, as its columns say."""
    waits = row.status == Status.QUEUED and row.paused_at is None and row.needs_left == 0
    row.line = line_of(row) if waits else None
    s.flush()
    announced = s.scalars(select(OutboxRow).where(OutboxRow.job_id == row.id)).one_or_none()
    if announced is None and waits:
        due = max(now, row.not_before or now)
        s.add(OutboxRow(job_id=row.id, attempt=row.attempt, created_at=now, next_try_at=due))
        s.flush()
    elif announced is not None and not waits:
        s.execute(delete(OutboxRow).where(OutboxRow.job_id == row.id))


def candidates(s: Session, offer: Offer, now: datetime) -> Iterator[tuple[str, int]]:
    """Id and attempt of what this worker should claim, the most urgent first.

    Priority decides; among equals the group that has fewest jobs running, then who came first. So a group that queues a
    thousand jobs keeps no other waiting. Other workers look at the same: who comes second gets the next of the line.
    """
    lines = _heads(s, now)
    query = select(JobRow).where(JobRow.id.in_(lines))
    heads = s.scalars(query, execution_options={"populate_existing": True}).all()
    firsts = [head for head in heads if fits(demand_of(head.spec), offer)]
    busy = _running_by_group(s)
    for head in sorted(firsts, key=lambda row: (-row.priority, busy.get(row.group, 0), row.id)):
        behind = JobRow.line == lines[head.id], JobRow.id > head.id, may_start(now)
        yield head.id, head.attempt
        for row in s.execute(select(JobRow.id, JobRow.attempt).where(*behind).order_by(JobRow.id).limit(CROWD)):
            yield row.id, row.attempt


def has_work(s: Session, offer: Offer) -> bool:
    """Whether there is a job that this worker could claim now."""
    return next(candidates(s, offer, db_now(s)), None) is not None


def may_start(now: datetime) -> ColumnElement[bool]:
    """It is queued, and the time of its next try has come.

    The status is asked all the same: processes of the version before leave jobs that they claim in their lines.
    """
    # As an expression, so that no index on the status is used: a planner that takes line and status for independent
    # reads all that are queued to find the first of a line.
    queued = func.coalesce(JobRow.status, "") == Status.QUEUED
    return and_(queued, or_(JobRow.not_before.is_(None), JobRow.not_before <= now))


def restand(s: Session) -> int:
    """Put jobs into their lines that a process of the version before has queued; says how many."""
    lineless = JobRow.line.is_(None), JobRow.paused_at.is_(None), JobRow.needs_left == 0
    query = select(JobRow).where(JobRow.status == Status.QUEUED, *lineless).order_by(JobRow.id)
    rows = s.scalars(query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}).all()
    for row in rows:
        settle(s, row, db_now(s))
    return len(rows)


def positions(s: Session, rows: Collection[JobRow]) -> dict[str, int]:
    """The place of each of these jobs among those that wait, 1 for the next; jobs without a line have none.

    Priority and time of submission count; what fits which worker, and whose turn it is, may still change the order. It
    is one query, whatever priorities there are.
    """
    waiting: dict[int, list[str]] = {}
    for row in rows:
        if row.line is not None:
            waiting.setdefault(row.priority, []).append(row.id)
    if not waiting:
        return {}
    places = [_places(_rank(priority), ids) for priority, ids in sorted(waiting.items())]
    return {job_id: place for job_id, place in s.execute(union_all(*places))}


def _places(rank: str, ids: Collection[str]) -> Select[str, int]:
    """The places of jobs of one priority: those that come before the first of them, and those between them, counted."""
    first, last = min(ids), max(ids)
    alike = JobRow.line >= rank, JobRow.line < rank + "!"
    urgent = select(func.count()).where(JobRow.line < rank).scalar_subquery()
    earlier = select(func.count()).where(*alike, JobRow.id < first).scalar_subquery()
    number = func.row_number().over(order_by=JobRow.id).label("number")
    numbered = select(JobRow.id, number).where(*alike, JobRow.id >= first, JobRow.id <= last).subquery()
    return select(numbered.c.id, urgent + earlier + numbered.c.number).where(numbered.c.id.in_(ids))


def _rank(priority: int) -> str:
    return f"{HIGHEST - priority:03d}"


def _heads(s: Session, now: datetime) -> dict[str, str]:
    """The first job of every line that may start now, and the line.

    The index leads from the first entry of one line to that of the next: the cost is that of the lines alone. Only ids
    are asked for, since a planner that joins them with the jobs' rows may read all of those.
    """
    lines = select(func.min(JobRow.line).label("line")).where(JobRow.line.is_not(None)).cte("lines", recursive=True)
    further = aliased(JobRow)
    next_line = select(func.min(further.line)).where(further.line > lines.c.line).scalar_subquery()
    lines = lines.union_all(select(next_line).where(lines.c.line.is_not(None)))
    first = select(JobRow.id).where(JobRow.line == lines.c.line, may_start(now)).order_by(JobRow.id).limit(1)
    heads = select(first.scalar_subquery(), lines.c.line).select_from(lines).where(lines.c.line.is_not(None))
    return {job_id: line for job_id, line in s.execute(heads) if job_id is not None}


def _running_by_group(s: Session) -> dict[str, int]:
    query = select(JobRow.group, func.count()).where(JobRow.status.in_(HELD)).group_by(JobRow.group)
    return {group: count for group, count in s.execute(query)}
