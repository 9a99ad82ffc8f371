"""What is checked before a job is queued, and what it will take."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.registry import find_version
from dsd_core.check import Checked, check
from dsd_core.errors import DataError, SpecError
from dsd_core.spec import TEACHER_SOURCES, JobSpec, parse_model
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Status
from jobs.tables import JobRow
from jobs.webhook_hosts import check_address

BUDGET_S = 2.0  # for reading images; the run reads all of them
LOOK_BACK = 100  # jobs


def admit(spec: JobSpec, engine: Engine, settings: Settings) -> Checked:
    """The spec as it will run, its registered teacher pinned to a version: an alias may move while the job waits.

    Raises SpecError, DataError or WeightsError, naming the field, for what makes the job impossible.
    """
    if spec.webhook is not None:
        check_address(spec.webhook, settings.webhook_hosts)
    spec, teacher = _pinned(spec, engine)
    try:
        checked = check(spec, budget_s=BUDGET_S, data_roots=settings.data_roots, service=True)
    except OSError as error:
        raise DataError(
            f"A file that this job names cannot be read: {error.strerror}: {str(error.filename)[:200]}",
            field="/dataset/root",
            hint="Check the paths in the spec, and that the service may read them.",
        ) from error
    if teacher is not None:
        _check_classes(teacher, checked)
    return checked


def _pinned(spec: JobSpec, engine: Engine) -> tuple[JobSpec, JobRow | None]:
    """The spec with its registered teacher as name/version, and the job that made it; None where it names no model."""
    if spec.teacher is None or spec.teacher.model is None:
        return spec, None
    field = "/teacher/model"
    try:
        name, version = parse_model(spec.teacher.model)
    except SpecError as error:
        raise SpecError(error.message, field=field, hint=error.hint) from error
    with db.reading(engine) as s:
        found = find_version(s, name, version, field=field)
        teacher = spec.teacher.model_copy(update={"model": f"{found.name}/{found.version}"})
        return spec.model_copy(update={"teacher": teacher}), store.get(s, found.job_id)


def _check_classes(teacher: JobRow, checked: Checked) -> None:
    theirs = tuple((teacher.result or {}).get("classes", ()))
    if theirs and theirs != checked.classes:
        raise SpecError(
            f"The teacher knows the {len(theirs)} classes {', '.join(theirs)}; dataset {checked.spec.dataset.name!r} "
            f"has the {len(checked.classes)} classes {', '.join(checked.classes)}.",
            field="/teacher/model",
            hint="Take a teacher that was trained on a dataset with these classes.",
        )


def estimated(s: Session, checked: Checked) -> dict[str, Any]:
    """The estimates of the check, and a duration by the speed of the newest job with the same networks and crop."""
    rows, _ = store.list_page(s, limit=LOOK_BACK, status=Status.SUCCEEDED)
    spec = checked.spec.model_dump(mode="json")
    alike = next((row for row in rows if _speed(row) and _shape(row.spec) == _shape(spec)), None)
    if alike is None:
        basis = "No job with these networks and this crop has run here yet."
        return checked.estimates | {"duration_s": None, "basis": basis}
    speed = _speed(alike)
    seconds = checked.estimates["views"] / speed
    basis = f"Job {alike.id} trained {speed:.1f} images/s; evaluation and export are not counted."
    return checked.estimates | {"duration_s": round(seconds, 1), "basis": basis}


def _speed(row: JobRow) -> float:
    return float((row.progress or {}).get("images_per_s") or 0.0)


def _shape(spec: dict[str, Any]) -> list[Any]:
    """What the speed of a training step depends on."""
    teacher = spec["teacher"] or {}
    return [
        spec["student"]["network"],
        [teacher.get(part) for part in ("network", *TEACHER_SOURCES)],
        [spec["dataset"]["name"], spec["dataset"]["size"], spec["train"]["augment"]["crop"]],
        [loss["loss"] for loss in spec["losses"]],
    ]
