"""What a job's run has left so far: its log and its numbers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Engine
from starlette.responses import StreamingResponse

from api.deps import Database, StorageOf
from api.errors import FileGone
from api.files import send_file
from api.routes.jobs import find
from api.schemas import Metrics
from api.series import Point, thinned
from jobs import db, store
from jobs.measurements import measurements
from jobs.storage import Stored

router = APIRouter(tags=["jobs"])

TEXT = "text/plain; charset=utf-8"
LONGEST_TAIL = 4 * 1024 * 1024  # bytes
BLOCK = 64 * 1024
EVENTS = 1000
EMPTY = Stored(0, lambda first, end: iter(()))


@router.get("/jobs/{job_id}/logs", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def get_logs(
    job_id: str,
    request: Request,
    engine: Database,
    storage: StorageOf,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only the last lines.")] = None,
    offset: Annotated[int, Query(ge=0, lt=2**53, description="Only what stands after this many bytes.")] = 0,
) -> Response:
    """What the training process printed, over all attempts; empty before it starts.

    `X-Log-Size` says how long the log is now: pass it as `offset` to get what comes after. Range works as well.
    """
    row = find(engine, job_id)
    if row.files_gone_at is not None:
        raise FileGone(f"The log of job {row.id} was deleted to free storage.", hint="Its history is kept: /events.")
    log = storage.file(row.id, "log.txt") or EMPTY
    headers = {"X-Log-Size": str(log.size), "Cache-Control": "no-store"}
    if tail is not None:
        return Response(_tail(log, tail), media_type=TEXT, headers=headers)
    if offset:
        headers["Content-Length"] = str(max(log.size - offset, 0))
        return StreamingResponse(log.read(offset, log.size), media_type=TEXT, headers=headers)
    return send_file(request, log, media_type=TEXT, headers=headers)


def _tail(log: Stored, lines: int) -> bytes:
    """The last lines, at most LONGEST_TAIL bytes of them."""
    text, start = b"", log.size
    while start > 0 and len(text) < LONGEST_TAIL and text.count(b"\n") <= lines:
        end, start = start, max(0, start - BLOCK)
        text = b"".join(log.read(start, end)) + text
    ending = b"\n" if text.endswith(b"\n") else b""
    return b"\n".join(text.removesuffix(b"\n").rsplit(b"\n", lines)[-lines:]) + ending


@router.get("/jobs/{job_id}/metrics")
def get_metrics(
    job_id: str,
    engine: Database,
    names: Annotated[
        list[str] | None, Query(max_length=200, description="Only these series; may be repeated or comma-separated.")
    ] = None,
    points: Annotated[int, Query(ge=2, le=20_000, description="Longer series are thinned to this many.")] = 2000,
) -> Metrics:
    """The numbers of a job over its steps, named as in MLflow: `student/loss/psd`, `teacher/iou/road`."""
    find(engine, job_id)
    wanted = {name for part in names or [] for name in part.split(",") if name}
    found: dict[str, list[Point]] = {}
    after: int | None = 0
    while after is not None:
        after = _collect(engine, job_id, after, wanted, found)
    return Metrics(data={name: thinned(series, points) for name, series in found.items()})


def _collect(engine: Engine, job_id: str, after: int, wanted: set[str], found: dict[str, list[Point]]) -> int | None:
    """Add the numbers of the next events to `found`; returns where to go on, None at the end."""
    with db.reading(engine) as s:
        rows = store.events_after(s, job_id, after, EVENTS, types=("progress", "evaluated"))
    for row in rows:
        for name, value, step in measurements(row.type, row.data):
            if not wanted or name in wanted:
                found.setdefault(name, []).append((step, value))
    return rows[-1].seq if len(rows) == EVENTS else None
