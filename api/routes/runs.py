"""What a job's run has left so far: its log and its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Engine
from starlette.responses import StreamingResponse

from api.deps import Database, SettingsOf
from api.files import read, send_file, size_of
from api.routes.jobs import find
from api.schemas import Metrics
from api.series import Point, thinned
from jobs import db, store
from jobs.measurements import measurements

router = APIRouter(tags=["jobs"])

TEXT = "text/plain; charset=utf-8"
LONGEST_TAIL = 4 * 1024 * 1024  # bytes
BLOCK = 64 * 1024
EVENTS = 1000


@router.get("/jobs/{job_id}/logs", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def get_logs(
    job_id: str,
    request: Request,
    engine: Database,
    settings: SettingsOf,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only the last lines.")] = None,
    offset: Annotated[int, Query(ge=0, lt=2**53, description="Only what stands after this many bytes.")] = 0,
) -> Response:
    """What the training process printed, over all attempts; empty before it starts.

    `X-Log-Size` says how long the log is now: pass it as `offset` to get what comes after. Range works as well.
    """
    path = settings.run_dir(find(engine, job_id).id) / "log.txt"
    size = size_of(path) or 0
    headers = {"X-Log-Size": str(size), "Cache-Control": "no-store"}
    if tail is not None:
        return Response(_tail(path, size, tail), media_type=TEXT, headers=headers)
    if offset:
        headers["Content-Length"] = str(max(size - offset, 0))
        return StreamingResponse(read(path, offset, size), media_type=TEXT, headers=headers)
    return send_file(request, path, size, media_type=TEXT, headers=headers)


def _tail(path: Path, size: int, lines: int) -> bytes:
    """The last lines, at most LONGEST_TAIL bytes of them."""
    text, start = b"", size
    while start > 0 and len(text) < LONGEST_TAIL and text.count(b"\n") <= lines:
        end, start = start, max(0, start - BLOCK)
        text = b"".join(read(path, start, end)) + text
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
