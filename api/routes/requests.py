"""What is asked of a job that exists: to end, to wait, to go on, to be more urgent, to be done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.admission import admit
from api.body import MERGE_PATCH, as_spec
from api.deps import Database, Patch, SettingsOf, Wishes
from api.job_view import job_view
from api.merge_patch import merged
from api.routes.jobs import check_id, find, found
from api.schemas import Job, Json
from api.submission import SubmissionOf, fingerprint_of
from dsd_core.spec import JobSpec
from jobs import db, store
from jobs.settings import Settings
from jobs.tables import JobRow

router = APIRouter(tags=["jobs"])


def _body(*, required: bool, schema: dict[str, Any]) -> dict[str, Any]:
    content = {media_type: {"schema": schema} for media_type in ("application/json", MERGE_PATCH)}
    return {"requestBody": {"required": required, "content": content}}


@router.post("/jobs/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """End a job. A queued one is cancelled at once, a running one is asked to stop; asking again changes nothing."""
    return _asked(engine, settings, job_id, store.request_cancel)


@router.post("/jobs/{job_id}/pause", status_code=202)
def pause_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """Let a job wait until it is resumed. A running one writes a checkpoint and frees its worker first."""
    return _asked(engine, settings, job_id, store.request_pause)


@router.post("/jobs/{job_id}/resume", status_code=202)
def resume_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """Let a paused job take its turn again, from its last checkpoint."""
    return _asked(engine, settings, job_id, store.request_resume)


@router.post("/jobs/{job_id}/stop", status_code=202)
def stop_job(job_id: str, engine: Database, settings: SettingsOf) -> Job:
    """End training now and keep the best student so far: it is scored, exported and registered as always."""
    return _asked(engine, settings, job_id, store.request_stop)


@router.patch("/jobs/{job_id}", openapi_extra=_body(required=True, schema={"$ref": "#/components/schemas/JobWishes"}))
def change_job(job_id: str, wishes: Wishes, engine: Database, settings: SettingsOf) -> Job:
    """Change the priority of a job that has not ended, or the labels of any. The spec stays what was submitted."""

    def change(s: Session, job_id: str) -> JobRow:
        row = found(s, job_id)
        if wishes.priority is not None:
            row = store.set_priority(s, job_id, wishes.priority)
        return row if wishes.labels is None else store.set_labels(s, job_id, wishes.labels)

    return _asked(engine, settings, job_id, change)


@router.post("/jobs/{job_id}/retry", status_code=202)
def retry_job(job_id: str, submission: SubmissionOf) -> Job:
    """Do a job that failed or was cancelled again, as a new job (`retry_of`) that goes on from its checkpoints."""
    check_id(job_id)
    return submission.once(
        fingerprint_of("retry", job_id), lambda: _spec_to_retry(submission.engine, job_id), retry_of=job_id
    )


@router.post("/jobs/{job_id}/clone", status_code=202, openapi_extra=_body(required=False, schema={"type": "object"}))
def clone_job(job_id: str, patch: Patch, submission: SubmissionOf) -> Job:
    """Queue a new job with the spec of this one, changed by the body: an RFC 7396 merge patch (null takes the default).

    It is checked like any new job. It trains from the beginning, and the old job stays as it is.
    """
    check_id(job_id)

    def make() -> JobSpec:
        row = find(submission.engine, job_id)
        spec = as_spec(merged(row.spec | _given_since(row), patch))
        return admit(spec, submission.engine, submission.settings).spec

    return submission.once(fingerprint_of("clone", job_id, patch), make, cloned_from=job_id)


def _asked(engine: Engine, settings: Settings, job_id: str, ask: Callable[[Session, str], JobRow]) -> Job:
    """The job after something was asked of it."""
    check_id(job_id)
    with db.begin(engine) as s:
        row = ask(s, job_id)
    with db.reading(engine) as s:
        return job_view(s, row, settings)


def _spec_to_retry(engine: Engine, job_id: str) -> JobSpec:
    with db.reading(engine) as s:
        row, spec = store.retryable(s, job_id)
    return spec.model_copy(update=_given_since(row))


def _given_since(row: JobRow) -> Json:
    """What a job has that its spec may not say: `change_job` leaves that as it was submitted."""
    return {"labels": row.labels, "priority": row.priority}
