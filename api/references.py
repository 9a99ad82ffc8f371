"""The jobs and registered models that a spec names: they exist, may still succeed, and fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.orm import Session

from api.registry import find_version
from dsd_core.check import Checked, Finding
from dsd_core.data import open_dataset
from dsd_core.errors import DataError, SpecError, WeightsError
from dsd_core.spec import JobSpec, Student, Teacher, parse_model, parse_spec
from jobs import store
from jobs.status import Status
from jobs.tables import JobRow, ModelRow

Role = Literal["teacher", "student"]
HOPELESS = {
    Status.FAILED: "has failed",
    Status.CANCELLED: "was cancelled",
    Status.CANCELLING: "is being cancelled",
}


@dataclass(frozen=True)
class Made:
    """A network that a job trains or has trained, and where the spec names it."""

    role: Role
    field: str
    source: Teacher | Student
    maker: JobRow

    @property
    def described(self) -> str:
        of_a_model = f"model {self.source.model!r}" if self.source.model is not None else ""
        return f"The {self.role}, {of_a_model or f'the student of job {self.maker.id} ({self.maker.name})'},"


def pinned(s: Session, spec: JobSpec) -> JobSpec:
    """The spec with its registered models as name/version: an alias may move while the job waits.

    Raises SpecError, WeightsError.
    """
    for role, source in _sources(spec).items():
        if source.model is not None:
            found = find_version(s, *_name_and_version(source.model, role), field=f"/{role}/model")
            _refuse_deleted(found, f"/{role}/model")
            fixed = source.model_copy(update={"model": f"{found.name}/{found.version}"})
            spec = spec.model_copy(update={role: fixed})
    return spec


def refuse_hopeless(s: Session, spec: JobSpec) -> None:
    """Raise SpecError where the spec waits for a job that does not exist or cannot succeed any more."""
    named = {f"/needs/{place}": job_id for place, job_id in enumerate(spec.needs)}
    named |= {f"/{role}/job": source.job for role, source in _sources(spec).items() if source.job is not None}
    for field, job_id in named.items():
        row = store.get(s, job_id)
        if row is None:
            raise SpecError(f"There is no job {job_id!r}.", field=field, hint="`dsd jobs` lists those there are.")
        if row.status in HOPELESS:
            why = f"Job {job_id} ({row.name}) {HOPELESS[Status(row.status)]}, so this one would wait for ever."
            raise SpecError(why, field=field, hint="Name a job that waits, runs or has succeeded, or submit it again.")


def made_by_jobs(s: Session, spec: JobSpec) -> list[Made]:
    """Teacher and student, where the spec names a job or a (pinned) model. Raises SpecError."""
    found = []
    for role, source in _sources(spec).items():
        field, maker = f"/{role}/{'model' if source.model is not None else 'job'}", None
        if source.model is not None:
            version = find_version(s, *_name_and_version(source.model, role), field=field)
            maker = store.get(s, version.job_id)
        elif source.job is not None:
            maker = store.get(s, source.job)
        if maker is not None:
            found.append(Made(role, field, source, maker))
    return found


def check_made(made: Made, checked: Checked) -> Checked:
    """Hold a network against the job that makes it: by its result, while there is none by its spec. Raises
    SpecError."""
    theirs = parse_spec(made.maker.spec)
    if theirs.kind == "evaluate":
        raise SpecError(
            f"Job {made.maker.id} ({made.maker.name}) is of kind evaluate and leaves no student.",
            field=made.field,
            hint="Name the job that trains or exports it.",
        )
    _check_classes(made, theirs, checked)
    _check_network(made, theirs)
    given, trained = made.source.preprocess, theirs.student.preprocess
    if given is None or trained is None or given == trained:
        return checked
    theirs_is = f"order {trained.order}, mean {trained.mean}, std {trained.std}"
    finding = Finding("warning", f"/{made.role}/preprocess", f"{made.described} was trained with {theirs_is}.")
    return replace(checked, findings=[*checked.findings, finding])


def _refuse_deleted(model: ModelRow, field: str) -> None:
    if model.files_gone_at is not None:
        message = f"The files of model {model.name}/{model.version} were deleted to free storage."
        raise WeightsError(message, field=field, hint="Choose another version, or run its job again.")


def _sources(spec: JobSpec) -> dict[Role, Teacher | Student]:
    return {"student": spec.student} if spec.teacher is None else {"teacher": spec.teacher, "student": spec.student}


def _name_and_version(text: str, role: Role) -> tuple[str, str]:
    try:
        return parse_model(text)
    except SpecError as error:
        raise SpecError(error.message, field=f"/{role}/model", hint=error.hint) from error


def _check_classes(made: Made, theirs: JobSpec, checked: Checked) -> None:
    classes = tuple((made.maker.result or {}).get("classes", ())) or _classes_to_come(theirs, checked)
    if classes and classes != checked.classes:
        raise SpecError(
            f"{made.described} knows the {len(classes)} classes {', '.join(classes)}; dataset "
            f"{checked.spec.dataset.name!r} has the {len(checked.classes)} classes {', '.join(checked.classes)}.",
            field=made.field,
            hint=f"Take a {made.role} that was trained on a dataset with these classes.",
        )


def _classes_to_come(theirs: JobSpec, checked: Checked) -> tuple[str, ...]:
    """Of the dataset of a job that has no result yet; none where it cannot be read from here."""
    data, ours = theirs.dataset, checked.spec.dataset
    if (data.name, data.root) == (ours.name, ours.root):
        return checked.classes
    try:
        return open_dataset(data.name, data.root, "train" if theirs.trains else "val", data.size).classes
    except (DataError, OSError):
        return ()


def _check_network(made: Made, theirs: JobSpec) -> None:
    given, trained = made.source.network, theirs.student.network
    if given is not None and trained is not None and str(given) != str(trained):
        raise SpecError(
            f"{made.described} is {trained}, not {given}.",
            field=f"/{made.role}/network",
            hint="Leave it out: what the job trains says its network.",
        )
