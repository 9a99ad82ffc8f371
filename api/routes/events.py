"""The history of a job: a page of it, or a stream that goes on until the job ends."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from api.deps import Database, FeedsOf
from api.feeds import job_event
from api.routes.jobs import found, head_of
from api.schemas import EventPage
from jobs import db, store

router = APIRouter(tags=["jobs"])

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
    feeds: FeedsOf,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    types: Types = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: LastSeen = None,
) -> Response:
    """What has happened to a job, the oldest first; with `Accept: text/event-stream`, as it happens until it ends."""
    after = max(after, last_event_id or 0)
    if STREAM in accept.lower():
        head = await run_in_threadpool(head_of, engine, job_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return EventSourceResponse(feeds.stream(head, after, types), headers=headers)
    page = await run_in_threadpool(_page, engine, job_id, after, limit, types)
    return JSONResponse(page.model_dump(mode="json"))


def _page(engine: Engine, job_id: str, after: int, limit: int, types: list[str] | None) -> EventPage:
    with db.reading(engine) as s:
        found(s, job_id)
        rows = store.events_after(s, job_id, after, limit + 1, types)
    data = [job_event(row) for row in rows[:limit]]
    return EventPage(data=data, has_more=len(rows) > limit, next_cursor=data[-1].seq if data else after)
