"""The weights files of networks that a spec names by reference: a registered model, or the job that trains it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from dsd_core.errors import WeightsError
from dsd_core.spec import JobSpec, parse_model
from jobs import store
from jobs.settings import Settings
from jobs.status import Status


def weights_by_reference(session: Session, settings: Settings, spec: JobSpec) -> list[str]:
    """`--teacher FILE` and `--student FILE` for the training process, of those that the spec names no file for.

    Raises WeightsError that names the field.
    """
    found: list[str] = []
    for role, source in (("teacher", spec.teacher), ("student", spec.student)):
        path = None
        if source is not None and source.model is not None:
            path = _of_model(session, settings, source.model, f"/{role}/model")
        elif source is not None and source.job is not None:
            path = _of_job(session, settings, source.job, f"/{role}/job")
        found += [] if path is None else [f"--{role}", str(path)]
    return found


def _of_model(session: Session, settings: Settings, named: str, field: str) -> Path:
    model = store.get_model_version(session, *parse_model(named))
    if model is None:
        message = f"There is no registered model {named!r}."
        raise WeightsError(message, field=field, hint="`dsd models` lists those that exist.")
    path = student_weights(settings, model.job_id)
    if not path.exists():
        message = f"The files of model {named!r} are gone: there is no {path}."
        raise WeightsError(message, field=field, hint="Choose another version.")
    return path


def _of_job(session: Session, settings: Settings, job_id: str, field: str) -> Path:
    row = store.get(session, job_id)
    if row is None or row.status != Status.SUCCEEDED:
        message = f"Job {job_id} {'does not exist' if row is None else f'is {row.status}'}: it has left no student."
        raise WeightsError(message, field=field, hint="Wait until it has succeeded, or name another job.")
    path = student_weights(settings, job_id)
    if not path.exists():
        message = f"The student of job {job_id} ({row.name}) is gone: there is no {path}."
        raise WeightsError(message, field=field, hint="Name another job, or run that one again.")
    return path


def student_weights(settings: Settings, job_id: str) -> Path:
    """Where the job leaves its student."""
    return settings.run_dir(job_id) / "student" / "model.safetensors"
