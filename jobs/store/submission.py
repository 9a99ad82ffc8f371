"""Submitting a job, once for each Idempotency-Key."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from dsd_core.spec import JobSpec
from jobs.db import db_now
from jobs.status import Status
from jobs.store.ids import new_id
from jobs.store.moves import announce, record_move
from jobs.tables import IdempotencyRow, JobRow


class IdempotencyConflict(DsdError):
    """The Idempotency-Key was used for another request."""

    code: ClassVar[str] = "idempotency_conflict"


def submit(
    s: Session,
    spec: JobSpec,
    *,
    max_attempts: int,
    idempotency_key: str | None = None,
    fingerprint: str | None = None,
) -> tuple[JobRow, bool]:
    """Queue a job: its row, its first history event and its message. Also says whether it is new.

    A key used before gives the old job where the fingerprint (default: the spec's digest) is the same, and otherwise
    raises IdempotencyConflict.
    """
    if idempotency_key is None:
        return _insert_job(s, spec, max_attempts), True
    fingerprint = fingerprint or spec.digest()
    if old := replayed(s, idempotency_key, fingerprint):
        return old, False
    try:
        with s.begin_nested():
            row = _insert_job(s, spec, max_attempts)
            s.add(
                IdempotencyRow(key=idempotency_key, fingerprint=fingerprint, job_id=row.id, created_at=row.created_at)
            )
        return row, True
    except IntegrityError:  # another submission with this key has committed meanwhile
        if old := replayed(s, idempotency_key, fingerprint):
            return old, False
        raise


def replayed(s: Session, key: str, fingerprint: str) -> JobRow | None:
    """The job this Idempotency-Key has made; None while it has made none. Raises IdempotencyConflict."""
    used = s.scalars(select(IdempotencyRow).where(IdempotencyRow.key == key)).one_or_none()
    if used is None:
        return None
    if used.fingerprint != fingerprint:
        raise IdempotencyConflict(
            f"The Idempotency-Key {key!r} was used for another request, which made job {used.job_id}.",
            hint="Take a new key for a new request.",
        )
    return s.get(JobRow, used.job_id)


def _insert_job(s: Session, spec: JobSpec, max_attempts: int) -> JobRow:
    now = db_now(s)
    row = JobRow(
        id=new_id(s, now),
        name=spec.name,
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        labels=dict(spec.labels),
        status=Status.QUEUED,
        max_attempts=max_attempts,
        created_at=now,
        queued_at=now,
        updated_at=now,
        last_seq=1,
    )
    s.add(row)
    s.flush()
    record_move(s, row, None, None, now)
    announce(s, row, now)
    return row
