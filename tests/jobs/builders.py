"""Builders that name just what a test is about."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from dsd_core.spec import JobSpec, parse_spec
from jobs import db, store
from jobs.resources import Offer
from jobs.store import Claim
from jobs.tables import JobEventRow, JobRow, OutboxRow

LEASE_S = 30.0


def a_spec(**fields: Any) -> JobSpec:
    return parse_spec(
        {
            "kind": "train",
            "name": "a-student",
            "dataset": {"name": "streets"},
            "student": {"network": {"name": "espnet"}},
        }
        | fields
    )


def an_offer(worker: str = "worker-1", **fields: Any) -> Offer:
    return Offer(**{"worker": worker, "host": "here", "device": "cpu", "memory_gib": 8.0} | fields)


def a_queued_job(engine: Engine, *, max_attempts: int = 3, **fields: Any) -> str:
    with db.begin(engine) as s:
        return store.submit(s, a_spec(**fields), max_attempts=max_attempts)[0].id


def a_running_job(engine: Engine, *, max_attempts: int = 3, worker: str = "worker-1") -> Claim:
    return claimed(engine, a_queued_job(engine, max_attempts=max_attempts), worker=worker)


def claimed(engine: Engine, job_id: str, attempt: int = 1, worker: str = "worker-1") -> Claim:
    with db.begin(engine) as s:
        claim = store.claim(s, job_id, attempt, worker, LEASE_S)
    assert claim is not None
    return claim


def lapse(engine: Engine) -> list[str]:
    """Let every lease run out, and the controller notice."""
    with db.begin(engine) as s:
        return store.expire_leases(s, now=db.db_now(s) + timedelta(seconds=LEASE_S + 1))


def cancel(engine: Engine, job_id: str) -> str:
    with db.begin(engine) as s:
        return store.request_cancel(s, job_id).status


def job(engine: Engine, job_id: str) -> JobRow:
    with db.reading(engine) as s:
        row = store.get(s, job_id)
    assert row is not None
    return row


def history(engine: Engine, job_id: str) -> list[JobEventRow]:
    with db.reading(engine) as s:
        return store.events_after(s, job_id, 0, 1000)


def claim_next(engine: Engine, **offer: Any) -> Claim | None:
    with db.begin(engine) as s:
        return store.claim_next(s, an_offer(**offer), LEASE_S)


def moves(engine: Engine, job_id: str) -> list[tuple[str | None, str]]:
    return [(e.data["from"], e.data["to"]) for e in history(engine, job_id) if e.type == "status"]


def outbox(engine: Engine) -> list[OutboxRow]:
    with db.reading(engine) as s:
        return list(s.query(OutboxRow).order_by(OutboxRow.id))
