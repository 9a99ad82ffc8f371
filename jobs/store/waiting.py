"""Why a queued job does not run yet, and what has become of the jobs it needs: for people who look at it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from jobs.db import db_now
from jobs.resources import Offer, demand_of, fits
from jobs.status import Status
from jobs.store.workers import live_workers, offer_of
from jobs.tables import JobNeedRow, JobRow, OutboxRow

RELAYED_S = 5.0  # a message that is due for longer has not been sent at its first try


class Waiting(StrEnum):
    """What a queued job waits for; the first of them that holds."""

    PAUSED = "paused"  # until somebody resumes it
    NEEDS = "needs"  # jobs that have not succeeded yet
    BACK_OFF = "back_off"  # the time of its next try
    WORKER = "worker"  # a live worker that has what the job asks for: there is none
    BROKER = "broker"  # its message could not be sent yet
    SLOT = "slot"  # its turn


def waiting_for(s: Session, rows: Collection[JobRow], *, fresh_s: float) -> dict[str, Waiting]:
    """What each queued one of these jobs waits for. Workers count that were heard of within `fresh_s`.

    The number of queries does not grow with that of the jobs.
    """
    queued = [row for row in rows if row.status == Status.QUEUED]
    if not queued:
        return {}
    now = db_now(s)
    offers = [offer_of(worker) for worker in live_workers(s, now, fresh_s)]
    unsent = _unsent(s, [row.id for row in queued], now)
    return {row.id: _waits_for(row, now, offers, row.id in unsent) for row in queued}


def needs_of(s: Session, job_ids: Collection[str]) -> dict[str, list[tuple[str, Status]]]:
    """For each of these jobs that needs others: their ids and where they are."""
    query = select(JobNeedRow.job_id, JobRow.id, JobRow.status).join(JobRow, JobRow.id == JobNeedRow.need_id)
    found: dict[str, list[tuple[str, Status]]] = {}
    for job_id, need_id, status in s.execute(query.where(JobNeedRow.job_id.in_(job_ids)).order_by(JobRow.id)):
        found.setdefault(job_id, []).append((need_id, Status(status)))
    return found


def _waits_for(row: JobRow, now: datetime, offers: Sequence[Offer], unsent: bool) -> Waiting:
    if row.paused_at is not None:
        return Waiting.PAUSED
    if row.needs_left:
        return Waiting.NEEDS
    if row.not_before is not None and row.not_before > now:
        return Waiting.BACK_OFF
    demand = demand_of(row.spec)
    if not any(fits(demand, offer) for offer in offers):
        return Waiting.WORKER
    return Waiting.BROKER if unsent else Waiting.SLOT


def _unsent(s: Session, job_ids: Collection[str], now: datetime) -> set[str]:
    """Those whose message was tried in vain, or is due and nobody tries."""
    late = or_(OutboxRow.tries > 0, OutboxRow.next_try_at < now - timedelta(seconds=RELAYED_S))
    query = select(OutboxRow.job_id).where(OutboxRow.job_id.in_(job_ids), and_(OutboxRow.sent_at.is_(None), late))
    return set(s.scalars(query))
