"""When a job will start and end, as far as its predecessors tell: the median of what jobs like it took."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db import db_now
from jobs.resources import demand_of, fits
from jobs.status import HELD, Status
from jobs.store.queueing import positions
from jobs.store.workers import live_workers, offer_of
from jobs.tables import JobRow

LOOK_BACK = 20  # jobs


@dataclass(frozen=True)
class Estimate:
    """None where nothing is known to estimate it from."""

    start: datetime | None = None
    finish: datetime | None = None


def estimate(s: Session, row: JobRow, *, fresh_s: float) -> Estimate:
    """Start and finish of a job that waits in line or runs. Workers count that were heard of within `fresh_s`."""
    now = db_now(s)
    if row.status == Status.RUNNING:
        left_s = _left_by_progress(row) or _left_by_history(s, row, now)
        return Estimate(row.started_at, None if left_s is None else now + timedelta(seconds=left_s))
    if row.line is None or (typical_s := _typical_s(s, row)) is None:
        return Estimate()
    ends = _ends_of_running(s, row, now, fresh_s, typical_s)
    if not ends:
        return Estimate()
    for _ in range(positions(s, [row]).get(row.id, 1) - 1):
        heapq.heapreplace(ends, ends[0] + typical_s)
    wait_s = max(ends[0], ((row.not_before or now) - now).total_seconds())
    start = now + timedelta(seconds=wait_s)
    return Estimate(start, start + timedelta(seconds=max(0.0, typical_s - row.run_seconds)))


def _ends_of_running(s: Session, row: JobRow, now: datetime, fresh_s: float, typical_s: float) -> list[float]:
    """For each worker that can run the job, in how many seconds it is free; a heap."""
    demand = demand_of(row.spec)
    able = [worker for worker in live_workers(s, now, fresh_s) if fits(demand, offer_of(worker))]
    running = {other.id: other for other in s.scalars(select(JobRow).where(JobRow.status.in_(HELD)))}
    ends = []
    for worker in able:
        job = running.get(worker.job_id or "")
        ends.append(0.0 if job is None else _left_by_progress(job) or max(0.0, typical_s - _running_s(job, now)))
    heapq.heapify(ends)
    return ends


def _left_by_progress(row: JobRow) -> float | None:
    """What the newest progress says is left of all phases, without evaluation and export."""
    progress = row.progress or {}
    steps_left = progress.get("steps", 0) - progress.get("step", 0)
    if steps_left <= 0 or progress.get("eta_s") is None:
        return None
    per_step_s = float(progress["eta_s"]) / steps_left
    return per_step_s * (progress["total_steps"] - progress["total_step"])


def _left_by_history(s: Session, row: JobRow, now: datetime) -> float | None:
    typical_s = _typical_s(s, row)
    return None if typical_s is None else max(0.0, typical_s - row.run_seconds - _running_s(row, now))


def _typical_s(s: Session, row: JobRow) -> float | None:
    """The median of the newest jobs of this name that succeeded, else of this kind."""
    for alike in (JobRow.name == row.name, JobRow.kind == row.kind):
        ended = select(JobRow.run_seconds).where(alike, JobRow.status == Status.SUCCEEDED)
        if seconds := s.scalars(ended.order_by(JobRow.id.desc()).limit(LOOK_BACK)).all():
            return median(seconds)
    return None


def _running_s(row: JobRow, now: datetime) -> float:
    """Since the newest claim began."""
    return max(0.0, (now - (row.claimed_at or now)).total_seconds())
