"""Submit, check, list and show jobs."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.admission import admit, estimated
from api.deps import Database, SettingsOf, Spec
from api.job_view import job_view, job_views
from api.schemas import Job, JobPage, Validation
from api.submission import SubmissionOf
from dsd_core.parts import JOB_ID
from dsd_core.spec import Kind
from jobs import db, store
from jobs.status import Status
from jobs.store import Head, JobNotFound
from jobs.tables import JobRow

router = APIRouter(tags=["jobs"])

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


Cursor = Annotated[str | None, Query(pattern=f"^{JOB_ID}$", description="The `next_cursor` of the page before.")]
Name = Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$", description="Only jobs of this name.")]
Group = Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$", description="Only jobs of this group.")]
Label = Annotated[
    str | None, Query(description="Only jobs with this label, `key:value`."), AfterValidator(_key_and_value)
]


@router.post("/jobs", status_code=202, openapi_extra=SPEC_BODY)
def submit_job(spec: Spec, submission: SubmissionOf) -> Job:
    """Queue a job. Names, files, classes and paths are checked first; what needs the networks, when it starts.

    The job is safe once this answers, also while no worker or message broker is there.
    """
    return submission.once(spec.digest(), lambda: admit(spec, submission.engine, submission.settings).spec)


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
    kind: Kind | None = None,
    group: Group = None,
    label: Label = None,
) -> JobPage:
    """Jobs, the newest first. Pages stay right while jobs are added: a page begins where the one before ended."""
    pair = None if label is None else (label.partition(":")[0], label.partition(":")[2])
    with db.reading(engine) as s:
        rows, has_more = store.list_page(
            s, limit=limit, after=after, status=status, name=name, kind=kind, group=group, label=pair
        )
        data = job_views(s, rows, settings)
    cursor = rows[-1].id if has_more else None
    if cursor is not None:
        query = urlencode({**request.query_params, "after": cursor})
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return JobPage(data=data, has_more=has_more, next_cursor=cursor)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """A job: its status and why, progress, result or error, model and MLflow run."""
    with db.reading(engine) as s:
        return job_view(s, found(s, job_id), settings)


def find(engine: Engine, job_id: str) -> JobRow:
    """The row of a job. Raises JobNotFound."""
    with db.reading(engine) as s:
        return found(s, job_id)


def found(s: Session, job_id: str) -> JobRow:
    """The row of a job. Raises JobNotFound."""
    check_id(job_id)
    row = store.get(s, job_id)
    if row is None:
        raise _no_job(job_id)
    return row


def head_of(engine: Engine, job_id: str) -> Head:
    """How far a job's history reaches. Raises JobNotFound."""
    check_id(job_id)
    with db.reading(engine) as s:
        heads = store.heads(s, [job_id])
    if not heads:
        raise _no_job(job_id)
    return heads[0]


def _no_job(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id!r}.", hint="GET /api/v1/jobs lists them.")


def check_id(job_id: str) -> None:
    """Raise JobNotFound for a text that is no id; some of those a database would not even compare."""
    if not re.fullmatch(JOB_ID, job_id):
        raise JobNotFound(f"There is no job {job_id[:60]!a}.", hint="GET /api/v1/jobs lists them.")
