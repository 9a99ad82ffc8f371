"""What retention asks about jobs, and what it writes down before anything is deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from dsd_core.spec import parse_model
from jobs.db import db_now
from jobs.status import TERMINAL, Status
from jobs.store.moves import lock
from jobs.store.tracking import get_model_version, model_aliases
from jobs.tables import InstallationRow, JobEventRow, JobRow, Json, ModelRow

ACTIVE = tuple(status for status in Status if status not in TERMINAL)
JOB_ID = re.compile(r"\b[0-9a-z]{19}\b")
PAGE = 500


class Part(StrEnum):
    """What goes at once."""

    LEFT_OVER = "left-over"  # half-written by a process that was killed
    ORPHAN = "orphan"  # a run folder of no known job
    CHECKPOINTS = "checkpoints"
    RUN = "run"  # log, events, pictures; and the student where none was registered
    STUDENT = "student"  # the files of a registered version, here and in MLflow


@dataclass(frozen=True)
class Kept:
    """A job as retention sees it."""

    job_id: str
    name: str
    status: Status
    finished_at: datetime | None  # None: it has not ended
    synced: bool  # MLflow has all of it
    gone: frozenset[Part]  # marked as deleted
    registered: bool
    aliases: tuple[str, ...]


def is_job_id(text: str) -> bool:
    return JOB_ID.fullmatch(text) is not None


def installation(s: Session) -> str:
    """The id of this database, made with its tables."""
    return s.scalars(select(InstallationRow.id)).one()


def kept_jobs(s: Session, job_ids: Sequence[str]) -> dict[str, Kept]:
    """Those of these jobs that there are."""
    aliases = model_aliases(s)
    found = {}
    for start in range(0, len(job_ids), PAGE):
        some = job_ids[start : start + PAGE]
        models = {model.job_id: model for model in s.scalars(select(ModelRow).where(ModelRow.job_id.in_(some)))}
        for job_id, name, status, ended, tracking, *gone in s.execute(_KEPT.where(JobRow.id.in_(some))):
            model = models.get(job_id)
            parts = {part for part, at in zip((Part.CHECKPOINTS, Part.RUN), gone, strict=True) if at}
            parts |= {Part.STUDENT} if model is not None and model.files_gone_at else set()
            found[job_id] = Kept(
                job_id,
                name,
                Status(status),
                ended,
                tracking == "synced",
                frozenset(parts),
                registered=model is not None,
                aliases=_aliases_of(model, aliases),
            )
    return found


_KEPT = select(
    JobRow.id,
    JobRow.name,
    JobRow.status,
    JobRow.finished_at,
    JobRow.tracking,
    JobRow.checkpoints_gone_at,
    JobRow.files_gone_at,
)


def in_use(s: Session) -> set[str]:
    """Jobs that have not ended, and those whose files they may read: each job, registered model and path into a run
    folder that a spec names, and what a retry goes on from."""
    used: set[str] = set()
    active = select(JobRow.id, JobRow.spec, JobRow.retry_of).where(JobRow.status.in_(ACTIVE))
    for job_id, spec, retry_of in s.execute(active):
        used |= {job_id, *JOB_ID.findall(json.dumps(spec)), *_chain(s, retry_of)}
        models = [get_model_version(s, *parse_model(name)) for name in _models_in(spec)]
        used |= {model.job_id for model in models if model is not None}
    return used


def mark_gone(s: Session, job_id: str, part: Part, data: Json) -> bool:
    """Write down that a part of an ended job's files goes; MLflow's copy follows. False: the job has not ended."""
    row = lock(s, JobRow.id == job_id, JobRow.status.in_(TERMINAL))
    if row is None:
        return False
    now = db_now(s)
    if part in (Part.CHECKPOINTS, Part.RUN):
        row.checkpoints_gone_at = row.checkpoints_gone_at or now
    if part is Part.RUN:
        row.files_gone_at = row.files_gone_at or now
    if part is Part.STUDENT and (model := model_of(s, job_id)):
        model.files_gone_at = model.files_gone_at or now
    row.last_seq += 1
    row.updated_at = now
    row.tracking = "pending"
    s.add(JobEventRow(job_id=job_id, seq=row.last_seq, at=now, type="pruned", data={"part": part, **data}))
    s.flush()
    return True


def unmark_student(s: Session, job_id: str) -> None:
    """A registered version stays after all."""
    if model := model_of(s, job_id):
        model.files_gone_at = None


def model_of(s: Session, job_id: str) -> ModelRow | None:
    """The version that a job has registered."""
    return s.scalars(select(ModelRow).where(ModelRow.job_id == job_id)).first()


def _chain(s: Session, job_id: str | None) -> Iterator[str]:
    """This job, the one it is a retry of, and so on."""
    while job_id is not None:
        yield job_id
        job_id = s.scalars(select(JobRow.retry_of).where(JobRow.id == job_id)).one_or_none()


def _models_in(spec: Json) -> Iterator[str]:
    for part in (spec.get("teacher"), spec.get("student")):
        if isinstance(part, dict) and part.get("model"):
            yield part["model"]


def _aliases_of(model: ModelRow | None, aliases: dict[str, dict[str, int]]) -> tuple[str, ...]:
    if model is None:
        return ()
    return tuple(alias for alias, version in aliases.get(model.name, {}).items() if version == model.version)
