"""Submitting a job, once for each Idempotency-Key."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from dsd_core.spec import JobSpec
from jobs.db import db_now
from jobs.status import TERMINAL, Status
from jobs.store.ids import new_id
from jobs.store.moves import lock, need_failed, needs_left, record_move
from jobs.store.queueing import settle
from jobs.store.requests import write_labels
from jobs.tables import IdempotencyRow, JobNeedRow, JobRow


class NeedNotFound(DsdError):
    """A job this one needs does not exist."""

    code: ClassVar[str] = "need_not_found"


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
    **lineage: str,
) -> tuple[JobRow, bool]:
    """Queue a job: its row, its first history event and its message. Also says whether it is new.

    It waits for the jobs it needs. `lineage` is `retry_of` or `cloned_from`, with the id of another job. A key used
    before gives the old job where the fingerprint (default: the spec's digest) is the same, and otherwise raises
    IdempotencyConflict. Raises DsdError where a job it needs is not there, has failed or was cancelled.
    """
    if idempotency_key is None:
        return _insert_job(s, spec, max_attempts, lineage), True
    fingerprint = fingerprint or spec.digest()
    if old := replayed(s, idempotency_key, fingerprint):
        return old, False
    try:
        with s.begin_nested():
            row = _insert_job(s, spec, max_attempts, lineage)
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


def _insert_job(s: Session, spec: JobSpec, max_attempts: int, lineage: dict[str, str]) -> JobRow:
    needs = [_good_need(s, job_id) for job_id in sorted(spec.needed_jobs())]
    now = db_now(s)
    row = JobRow(
        id=new_id(s, now),
        name=spec.name,
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        labels={},
        priority=spec.priority,
        group=spec.group,
        status=Status.QUEUED,
        max_attempts=max_attempts,
        created_at=now,
        queued_at=now,
        updated_at=now,
        last_seq=1,
        **lineage,
    )
    s.add(row)
    s.flush()
    write_labels(s, row, dict(spec.labels))
    s.add_all(JobNeedRow(job_id=row.id, need_id=need.id) for need in needs)
    s.flush()
    row.needs_left = needs_left(s, row.id)
    record_move(s, row, None, None, now)
    settle(s, row, now)
    return row


def _good_need(s: Session, job_id: str) -> JobRow:
    """A job that may still succeed or has, locked: it cannot end while another is made to wait for it."""
    need = lock(s, JobRow.id == job_id)
    if need is None:
        raise NeedNotFound(f"It needs job {job_id!r}, which does not exist.", field="/needs")
    if need.status in TERMINAL and need.status != Status.SUCCEEDED:
        raise need_failed(need)
    return need
