"""A job's row as the answer that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.schemas import Job, JobError, JobMlflow, JobModel, Json, Need, Progress
from jobs import store
from jobs.settings import Settings
from jobs.status import Reason, Request, Status
from jobs.tables import JobRow


def job_view(s: Session, row: JobRow, settings: Settings) -> Job:
    """One job, with an estimate of when it starts and ends."""
    estimate = store.estimate(s, row, fresh_s=settings.lease_s)
    (job,) = job_views(s, [row], settings)
    return job.model_copy(update={"estimated_start_at": estimate.start, "estimated_finish_at": estimate.finish})


def job_views(s: Session, rows: Sequence[JobRow], settings: Settings) -> list[Job]:
    """Jobs of a list. The number of queries does not grow with that of the jobs."""
    places = store.positions(s, rows)
    needs = store.needs_of(s, [row.id for row in rows])
    waiting = store.waiting_for(s, rows, fresh_s=settings.lease_s)
    return [
        _job(
            row,
            settings,
            queue_position=places.get(row.id),
            needs=[Need(id=need_id, status=status) for need_id, status in needs.get(row.id, [])],
            waiting_for=waiting.get(row.id),
        )
        for row in rows
    ]


def _job(row: JobRow, settings: Settings, **of_others: Any) -> Job:
    """`of_others`: what other rows say about this job."""
    return Job(
        id=row.id,
        name=row.name,
        kind=row.kind,
        labels=row.labels,
        priority=row.priority,
        group=row.group,
        retry_of=row.retry_of,
        cloned_from=row.cloned_from,
        status=Status(row.status),
        reason=Reason(row.reason) if row.reason else None,
        request=Request(row.request) if row.request else None,
        progress=_progress(row.progress),
        estimated_start_at=None,
        estimated_finish_at=None,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        worker=row.worker,
        spec=row.spec,
        spec_digest=row.spec_digest,
        result=row.result,
        error=JobError.model_validate(row.error) if row.error else None,
        model=JobModel(
            name=row.name,
            version=row.model_version,
            tracking=row.tracking,
            tracking_error=row.tracking_error,
        ),
        mlflow=JobMlflow(run_id=row.mlflow_run_id, url=_run_url(row.mlflow_run_id, settings)),
        run_seconds=row.run_seconds,
        last_seq=row.last_seq,
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cancel_requested_at=row.cancel_requested_at,
        paused_at=row.paused_at,
        not_before=row.not_before,
        heartbeat_at=row.heartbeat_at,
        checkpoints_gone_at=row.checkpoints_gone_at,
        files_gone_at=row.files_gone_at,
        updated_at=row.updated_at,
        **of_others,
    )


def _progress(event: Json | None) -> Progress | None:
    if event is None:
        return None
    percent = 100.0 * event["total_step"] / max(event["total_steps"], 1)
    return Progress.model_validate(event | {"percent": round(percent, 2)})


def _run_url(run_id: str | None, settings: Settings) -> str | None:
    base = settings.mlflow_public_url or settings.mlflow_url
    return f"{base.rstrip('/')}/#/runs/{run_id}" if base and run_id else None
