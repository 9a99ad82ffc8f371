"""Submit, check, list, show and cancel jobs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.admission import admit, estimated
from api.deps import Database, SettingsOf, Spec
from api.job_view import job_view
from api.schemas import Job, JobPage, Validation
from dsd_core.spec import JobSpec
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Status
from jobs.store import JobNotFound
from jobs.tables import JobRow

router = APIRouter(tags=["jobs"])

POLL_S = "2"  # how soon a submitted job is worth looking at again
SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}},
    }
}


def _key_and_value(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}:[^\x00-\x1f\x7f]{0,200}", text):
        raise ValueError("write it as key:value.")
    return text


Cursor = Annotated[str | None, Query(pattern=r"^[0-9a-z]{1,40}$", description="The `next_cursor` of the page before.")]
Name = Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$", description="Only jobs of this name.")]
Label = Annotated[
    str | None, Query(description="Only jobs with this label, `key:value`."), AfterValidator(_key_and_value)
]


@router.post("/jobs", status_code=202, openapi_extra=SPEC_BODY)
def submit_job(
    spec: Spec,
    engine: Database,
    settings: SettingsOf,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=r"^[\x21-\x7e]{1,255}$",
            description="Repeating a request with its key makes no second job.",
        ),
    ] = None,
) -> Job:
    """Queue a job. Names, files, classes and paths are checked first; what needs the networks, when it starts.

    The job is safe once this answers, also while no worker or message broker is there.
    """
    if (old := _replayed(engine, settings, idempotency_key, spec)) is not None:
        job, created = old, False
    else:
        checked = admit(spec, engine, settings)
        with db.begin(engine) as s:
            row, created = store.submit(
                s,
                checked.spec,
                max_attempts=settings.max_attempts,
                idempotency_key=idempotency_key,
                fingerprint=spec.digest(),
            )
            job = job_view(row, store.positions(s, [row]).get(row.id), settings)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    response.headers["Retry-After"] = POLL_S
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return job


def _replayed(engine: Engine, settings: Settings, key: str | None, spec: JobSpec) -> Job | None:
    """The job this key has made; it is not checked again, for the repeat of a request must get what it missed."""
    if key is None:
        return None
    with db.reading(engine) as s:
        row = store.replayed(s, key, spec.digest())
        return None if row is None else job_view(row, store.positions(s, [row]).get(row.id), settings)


@router.post("/jobs/validate", openapi_extra=SPEC_BODY)
def validate_job(spec: Spec, engine: Database, settings: SettingsOf) -> Validation:
    """Check a job without queueing it: the spec with every default, findings, and what it will take."""
    checked = admit(spec, engine, settings)
    with db.reading(engine) as s:
        estimates = estimated(s, checked)
    return Validation.model_validate(checked.as_dict() | {"estimates": estimates})


@router.get("/jobs")
def list_jobs(
    request: Request,
    response: Response,
    engine: Database,
    settings: SettingsOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Cursor = None,
    status: Status | None = None,
    name: Name = None,
    kind: Literal["distill", "train"] | None = None,
    label: Label = None,
) -> JobPage:
    """Jobs, the newest first. Pages stay right while jobs are added: a page begins where the one before ended."""
    pair = None if label is None else (label.partition(":")[0], label.partition(":")[2])
    with db.reading(engine) as s:
        rows, has_more = store.list_page(s, limit=limit, after=after, status=status, name=name, kind=kind, label=pair)
        places = store.positions(s, rows)
        data = [job_view(row, places.get(row.id), settings) for row in rows]
    cursor = rows[-1].id if has_more else None
    if cursor is not None:
        query = urlencode({**request.query_params, "after": cursor})
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return JobPage(data=data, has_more=has_more, next_cursor=cursor)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """A job: its status and why, progress, result or error, model and MLflow run."""
    with db.reading(engine) as s:
        row = found(s, job_id)
        return job_view(row, store.positions(s, [row]).get(row.id), settings)


@router.post("/jobs/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """End a job. A queued one is cancelled at once, a running one is asked to stop; asking again changes nothing."""
    check_id(job_id)
    with db.begin(engine) as s:
        row = store.request_cancel(s, job_id)
        return job_view(row, None, settings)


def find(engine: Engine, job_id: str) -> JobRow:
    """The row of a job. Raises JobNotFound."""
    with db.reading(engine) as s:
        return found(s, job_id)


def found(s: Session, job_id: str) -> JobRow:
    """The row of a job. Raises JobNotFound."""
    check_id(job_id)
    row = store.get(s, job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.", hint="GET /api/v1/jobs lists them.")
    return row


def check_id(job_id: str) -> None:
    """Raise JobNotFound for a text that is no id; some of those a database would not even compare."""
    if not re.fullmatch(r"[0-9a-z]{1,40}", job_id):
        raise JobNotFound(f"There is no job {job_id[:60]!a}.", hint="GET /api/v1/jobs lists them.")
