"""The history of a job: a page of it, or a stream that goes on until the job ends."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from api.deps import Database
from api.errors import DATABASE_AWAY
from api.routes.jobs import find, found
from api.schemas import EventPage, JobEvent
from jobs import db, store
from jobs.status import TERMINAL
from jobs.tables import JobEventRow

router = APIRouter(tags=["jobs"])

POLL_S = 0.5
HEARTBEAT_S = 15.0
BATCH = 200
RECONNECT_MS = 2000
LARGEST_SEQ = 2**31 - 1
STREAM = "text/event-stream"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EventPage,
        "description": "A page of events; with `Accept: text/event-stream`, server-sent events, each with its `seq` as"
        " id and its type as event, and at the end of the job `event: end`.",
        "content": {STREAM: {"schema": {"type": "string"}}},
    }
}

Seq = Annotated[int, Query(ge=0, le=LARGEST_SEQ, description="Only events after this `seq`.")]
LastSeen = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, le=LARGEST_SEQ, description="As `after`; browsers send it on reconnecting."),
]
Types = Annotated[
    list[Annotated[str, Query(pattern=r"^[a-z_]{1,40}$")]] | None,
    Query(alias="type", max_length=20, description="Only events of this type; may be repeated."),
]


@router.get("/jobs/{job_id}/events", response_model=None, responses=RESPONSES)
async def get_events(
    job_id: str,
    engine: Database,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    types: Types = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: LastSeen = None,
) -> Response:
    """What has happened to a job, the oldest first; with `Accept: text/event-stream`, as it happens until it ends."""
    after = max(after, last_event_id or 0)
    if STREAM in accept.lower():
        await run_in_threadpool(find, engine, job_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return EventSourceResponse(stream(engine, job_id, after, types), headers=headers)
    page = await run_in_threadpool(_page, engine, job_id, after, limit, types)
    return JSONResponse(page.model_dump(mode="json"))


def _page(engine: Engine, job_id: str, after: int, limit: int, types: list[str] | None) -> EventPage:
    with db.reading(engine) as s:
        found(s, job_id)
        rows = store.events_after(s, job_id, after, limit + 1, types)
    data = [_event(row) for row in rows[:limit]]
    return EventPage(data=data, has_more=len(rows) > limit, next_cursor=data[-1].seq if data else after)


def _event(row: JobEventRow) -> JobEvent:
    return JobEvent(seq=row.seq, at=row.at, type=row.type, data=row.data)


class _Look(BaseModel):
    """What one look at the database found."""

    model_config = ConfigDict(frozen=True)
    events: list[JobEvent]
    ended: dict[str, Any] | None
    """What `event: end` says, once the job has ended and `events` are its last."""


async def stream(
    engine: Engine,
    job_id: str,
    after: int,
    types: list[str] | None = None,
    *,
    poll_s: float = POLL_S,
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncIterator[bytes]:
    """A job's events after `after` as server-sent events, until the job has ended.

    A thread is taken for each look at the database and given back; between two looks a watcher costs no thread. While
    the database is away the stream stays open.
    """
    yield format_sse_event(comment=f"job {job_id}", retry=RECONNECT_MS)
    spoke = time.monotonic()
    while True:
        try:
            look = await run_in_threadpool(_look, engine, job_id, after, types)
        except DATABASE_AWAY:
            look = _Look(events=[], ended=None)
        for event in look.events:
            yield format_sse_event(id=str(event.seq), event=event.type, data_str=event.model_dump_json())
            after = event.seq
        if look.ended is not None:
            yield format_sse_event(event="end", data_str=json.dumps(look.ended))
            return
        if look.events:
            spoke = time.monotonic()
        elif time.monotonic() - spoke >= heartbeat_s:
            yield format_sse_event(comment="still here")
            spoke = time.monotonic()
        if len(look.events) < BATCH:
            await anyio.sleep(poll_s)


def _look(engine: Engine, job_id: str, after: int, types: list[str] | None) -> _Look:
    """The row is read before the events: where it says that the job has ended, no event can come any more."""
    with db.reading(engine) as s:
        row = found(s, job_id)
        rows = store.events_after(s, job_id, after, BATCH, types)
    ended = row.status in TERMINAL and len(rows) < BATCH
    last = {"id": row.id, "status": row.status, "reason": row.reason, "last_seq": row.last_seq}
    return _Look(events=[_event(row) for row in rows], ended=last if ended else None)
