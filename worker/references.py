"""The networks that a spec names by reference: the jobs that have made them, each with a student to read."""

from __future__ import annotations

from sqlalchemy.orm import Session

from dsd_core.errors import WeightsError
from dsd_core.spec import JobSpec, parse_model
from jobs import store
from jobs.status import Status


def makers_of(session: Session, spec: JobSpec) -> dict[str, str]:
    """The jobs whose exported students the spec names as `teacher` and `student`, by these names.

    Raises WeightsError that names the field.
    """
    found = {}
    for role, source in (("teacher", spec.teacher), ("student", spec.student)):
        if source is not None and source.model is not None:
            found[role] = _of_model(session, source.model, f"/{role}/model")
        elif source is not None and source.job is not None:
            found[role] = _of_job(session, source.job, f"/{role}/job")
    return found


def _of_model(session: Session, named: str, field: str) -> str:
    model = store.get_model_version(session, *parse_model(named))
    if model is None:
        message = f"There is no registered model {named!r}."
        raise WeightsError(message, field=field, hint="`dsd models` lists those that exist.")
    if model.files_gone_at is not None:
        message = f"The files of model {named!r} were deleted to free storage."
        raise WeightsError(message, field=field, hint="Choose another version.")
    return model.job_id


def _of_job(session: Session, job_id: str, field: str) -> str:
    row = store.get(session, job_id)
    if row is None or row.status != Status.SUCCEEDED:
        message = f"Job {job_id} {'does not exist' if row is None else f'is {row.status}'}: it has left no student."
        raise WeightsError(message, field=field, hint="Wait until it has succeeded, or name another job.")
    return row.id
