"""The workers that are there: what they have, what they do, and which of them shall take no more jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from jobs.db import db_now
from jobs.resources import Device, Offer
from jobs.status import Drain
from jobs.tables import WorkerRow


class WorkerNotFound(DsdError):
    """There is no such worker."""

    code: ClassVar[str] = "worker_not_found"


def register_worker(s: Session, offer: Offer) -> WorkerRow:
    """Write down that a worker has started and what it has. A drain that was asked of this name stays."""
    now = db_now(s)
    row = s.get(WorkerRow, offer.worker, with_for_update=True) or WorkerRow(name=offer.worker)
    row.host, row.device, row.devices = offer.host, offer.device, list(offer.devices)
    row.memory_gib, row.labels, row.job_id = offer.memory_gib, dict(offer.labels), None
    row.started_at = row.heartbeat_at = now
    s.add(row)
    s.flush()
    return row


def worker_beat(s: Session, name: str, job_id: str | None) -> Drain | None:
    """Say that a worker is alive and what it runs; hear whether it shall be emptied. Raises WorkerNotFound."""
    row = _known(s, name)
    row.heartbeat_at, row.job_id = db_now(s), job_id
    return None if row.drain is None else Drain(row.drain)


def set_drain(s: Session, name: str, drain: Drain | None) -> WorkerRow:
    """Empty a worker, or let it take jobs again (None). Raises WorkerNotFound."""
    row = _known(s, name)
    row.drain = drain
    s.flush()
    return row


def list_workers(s: Session) -> list[WorkerRow]:
    """All that are written down, by name."""
    return list(s.scalars(select(WorkerRow).order_by(WorkerRow.name)))


def live_workers(s: Session, now: datetime, fresh_s: float) -> list[WorkerRow]:
    """Those that take jobs and were heard of within `fresh_s`."""
    heard = WorkerRow.heartbeat_at > now - timedelta(seconds=fresh_s)
    return list(s.scalars(select(WorkerRow).where(heard, WorkerRow.drain.is_(None)).order_by(WorkerRow.name)))


def idle_workers(s: Session, now: datetime, fresh_s: float) -> int:
    """How many of the live workers have no job."""
    return sum(row.job_id is None for row in live_workers(s, now, fresh_s))


def forget_workers(s: Session, after_s: float) -> int:
    """Remove those that were not heard of for this long; says how many. A drain that was asked of them goes too."""
    gone = delete(WorkerRow).where(WorkerRow.heartbeat_at < db_now(s) - timedelta(seconds=after_s))
    return len(s.execute(gone.returning(WorkerRow.name), execution_options={"synchronize_session": False}).all())


def _known(s: Session, name: str) -> WorkerRow:
    row = s.get(WorkerRow, name, with_for_update=True, populate_existing=True)
    if row is None:
        known = ", ".join(worker.name for worker in list_workers(s)) or "none"
        raise WorkerNotFound(f"There is no worker {name!r}.", hint=f"Known workers: {known}.")
    return row


def offer_of(row: WorkerRow) -> Offer:
    """What a worker has, as it last said."""
    device: Device = "cuda" if row.device == "cuda" else "cpu"
    return Offer(row.name, row.host, device, tuple(row.devices), row.memory_gib, dict(row.labels))
