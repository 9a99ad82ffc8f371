"""The workers that are there, and emptying one of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy import Engine

from api.deps import Database, SettingsOf
from api.schemas import Worker, Workers
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Drain
from jobs.tables import WorkerRow

router = APIRouter(tags=["workers"])

Name = Annotated[str, Path(pattern=r"^[^\x00-\x1f\x7f]{1,200}$", description="As `GET /workers` names it.")]


@router.get("/workers")
def list_workers(engine: Database, settings: SettingsOf) -> Workers:
    """Workers with what they have, what they run, and whether they take jobs."""
    with db.reading(engine) as s:
        now = db.db_now(s)
        return Workers(data=[_worker(row, now, settings) for row in store.list_workers(s)])


@router.post("/workers/{name}/drain", status_code=202)
def drain_worker(
    name: Name,
    engine: Database,
    settings: SettingsOf,
    release: Annotated[bool, Query(description="Give the job it has back now, with a checkpoint.")] = False,
) -> Worker:
    """Let a worker take no further job: end the one it has, or give it back for another to go on with."""
    return _drained(engine, settings, name, Drain.NOW if release else Drain.AFTER_JOB)


@router.post("/workers/{name}/undrain", status_code=202)
def undrain_worker(name: Name, engine: Database, settings: SettingsOf) -> Worker:
    """Let a worker that was drained take jobs again."""
    return _drained(engine, settings, name, None)


def _drained(engine: Engine, settings: Settings, name: str, drain: Drain | None) -> Worker:
    with db.begin(engine) as s:
        return _worker(store.set_drain(s, name, drain), db.db_now(s), settings)


def _worker(row: WorkerRow, now: datetime, settings: Settings) -> Worker:
    return Worker.model_validate(
        {column: getattr(row, column) for column in Worker.model_fields if column != "live"}
        | {"live": row.heartbeat_at > now - timedelta(seconds=settings.lease_s)}
    )
