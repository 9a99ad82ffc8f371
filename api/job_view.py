"""A job's row as the answer that people read."""

from __future__ import annotations

from api.schemas import Job, JobError, JobMlflow, JobModel, Json, Progress
from jobs.settings import Settings
from jobs.status import Reason, Status
from jobs.tables import JobRow


def job_view(row: JobRow, queue_position: int | None, settings: Settings) -> Job:
    return Job(
        id=row.id,
        name=row.name,
        kind=row.kind,
        labels=row.labels,
        status=Status(row.status),
        reason=Reason(row.reason) if row.reason else None,
        progress=_progress(row.progress),
        queue_position=queue_position,
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
        heartbeat_at=row.heartbeat_at,
        checkpoints_gone_at=row.checkpoints_gone_at,
        files_gone_at=row.files_gone_at,
        updated_at=row.updated_at,
    )


def _progress(event: Json | None) -> Progress | None:
    if event is None:
        return None
    percent = 100.0 * event["total_step"] / max(event["total_steps"], 1)
    return Progress.model_validate(event | {"percent": round(percent, 2)})


def _run_url(run_id: str | None, settings: Settings) -> str | None:
    base = settings.mlflow_public_url or settings.mlflow_url
    return f"{base.rstrip('/')}/#/runs/{run_id}" if base and run_id else None
