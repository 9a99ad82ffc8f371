"""What is checked before a job is queued, and what it will take."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.references import check_made, made_by_jobs, pinned, refuse_hopeless
from dsd_core.check import Checked, check
from dsd_core.errors import DataError
from dsd_core.spec import TEACHER_SOURCES, JobSpec
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Status
from jobs.tables import JobRow
from jobs.webhook_hosts import check_address

BUDGET_S = 2.0  # for reading images; the run reads all of them
LOOK_BACK = 100  # jobs


def admit(spec: JobSpec, engine: Engine, settings: Settings) -> Checked:
    """The spec as it will run, the registered models it names pinned to a version.

    Raises SpecError, DataError or WeightsError, naming the field, for what makes the job impossible.
    """
    if spec.webhook is not None:
        check_address(spec.webhook, settings.webhook_hosts)
    with db.reading(engine) as s:
        spec = pinned(s, spec)
        refuse_hopeless(s, spec)
        made = made_by_jobs(s, spec)
    try:
        checked = check(spec, budget_s=BUDGET_S, data_roots=settings.data_roots, service=True)
    except OSError as error:
        raise DataError(
            f"A file that this job names cannot be read: {error.strerror}: {str(error.filename)[:200]}",
            field="/dataset/root",
            hint="Check the paths in the spec, and that the service may read them.",
        ) from error
    for network in made:
        checked = check_made(network, checked)
    return checked


def estimated(s: Session, checked: Checked) -> dict[str, Any]:
    """The estimates of the check, and a duration by the speed of the newest job with the same networks and crop."""
    if not checked.spec.trains:
        return checked.estimates | {"duration_s": None, "basis": "Nothing is trained; scoring is not estimated."}
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
