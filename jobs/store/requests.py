"""What people ask of a job: to end, to wait, to go on, to be more urgent, to be done again.

Only who owns a job moves its status: the queue's are moved here, of a running one the wish is written down, and its
worker hears of it with the next heartbeat. Each is one transaction and one line in the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import delete
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from dsd_core.spec import JobSpec, parse_spec
from jobs.db import db_now
from jobs.status import TERMINAL, Reason, Request, Status
from jobs.store.moves import lock, move, record_request
from jobs.store.queueing import settle
from jobs.tables import JobLabelRow, JobRow


class JobNotFound(DsdError):
    """There is no such job."""

    code: ClassVar[str] = "job_not_found"


class NotPossible(DsdError):
    """The job is in no state for this."""

    code: ClassVar[str] = "not_possible"

    def __init__(self, message: str, status: Status, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class NotCancellable(NotPossible):
    """The job has already ended."""

    code: ClassVar[str] = "not_cancellable"

    def __init__(self, status: Status) -> None:
        super().__init__(f"The job has already ended: it is {status}.", status)


def request_cancel(s: Session, job_id: str) -> JobRow:
    """End a queued job, or ask a running one to end; once this is committed the job cannot succeed.

    Asking again changes nothing. Raises JobNotFound, and NotCancellable where the job has ended.
    """
    row = _locked(s, job_id)
    status, now = Status(row.status), db_now(s)
    if status in TERMINAL:
        raise NotCancellable(status)
    if status is Status.CANCELLING:
        return row
    asked: dict[str, Any] = {"cancel_requested_at": now}
    if status is Status.QUEUED:
        return move(s, row, Status.CANCELLED, Reason.CANCELLED_BY_USER, now, finished_at=now, request=None, **asked)
    return move(s, row, Status.CANCELLING, Reason.CANCELLED_BY_USER, now, request=Request.CANCEL, **asked)


def request_pause(s: Session, job_id: str) -> JobRow:
    """Keep a queued job from being claimed; ask a running one for a checkpoint and to wait in the queue.

    Asking again changes nothing. Raises JobNotFound, NotPossible.
    """
    row = _unended(s, job_id, "paused")
    if row.paused_at is not None or row.request == Request.PAUSE:
        return row
    _refuse_other_request(row)
    now = db_now(s)
    if row.status == Status.QUEUED:
        row.paused_at = now
        settle(s, row, now)
    else:
        row.request = Request.PAUSE
    record_request(s, row, now, {"request": Request.PAUSE})
    return row


def request_resume(s: Session, job_id: str) -> JobRow:
    """Let a paused job go on where its last checkpoint is; also takes back a pause the worker has not obeyed yet.

    Raises JobNotFound, NotPossible.
    """
    row = _unended(s, job_id, "resumed")
    if row.paused_at is None and row.request != Request.PAUSE:
        raise NotPossible(f"The job is not paused: it is {row.status}.", Status(row.status))
    now = db_now(s)
    row.paused_at = row.request = None
    settle(s, row, now)
    record_request(s, row, now, {"request": "resume"})
    return row


def request_stop(s: Session, job_id: str) -> JobRow:
    """Ask a job to end now with the best student so far. One that waits for a further try stops when it is claimed.

    Asking again changes nothing. Raises JobNotFound, and NotPossible where it has ended or has never started.
    """
    row = _unended(s, job_id, "stopped")
    if row.started_at is None:
        raise NotPossible(
            "The job has not started, so there is no student to keep.", Status(row.status), hint="Cancel it instead."
        )
    if row.request == Request.STOP:
        return row
    _refuse_other_request(row)
    now = db_now(s)
    row.request, row.paused_at = Request.STOP, None
    settle(s, row, now)
    record_request(s, row, now, {"request": Request.STOP})
    return row


def set_priority(s: Session, job_id: str, priority: int) -> JobRow:
    """Higher ones are claimed first. Raises JobNotFound, NotPossible where the job has ended."""
    row = _unended(s, job_id, "given another priority")
    if row.priority != priority:
        now = db_now(s)
        row.priority = priority
        settle(s, row, now)
        record_request(s, row, now, {"request": "priority", "priority": priority})
    return row


def set_labels(s: Session, job_id: str, changes: Mapping[str, str | None]) -> JobRow:
    """Give a job, ended or not, these labels beside those it has; None takes one away. Raises JobNotFound."""
    row = _locked(s, job_id)
    labels = {key: value for key, value in {**row.labels, **changes}.items() if value is not None}
    if row.labels != labels:
        write_labels(s, row, labels)
        record_request(s, row, db_now(s), {"request": "labels", "labels": labels})
    return row


def write_labels(s: Session, row: JobRow, labels: dict[str, str]) -> None:
    """Give a job these labels and no others."""
    row.labels = labels
    s.execute(delete(JobLabelRow).where(JobLabelRow.job_id == row.id))
    s.add_all(JobLabelRow(job_id=row.id, key=key, value=value) for key, value in labels.items())
    s.flush()


def retryable(s: Session, job_id: str) -> tuple[JobRow, JobSpec]:
    """A job that ended without success, and its spec, to be submitted as a retry. Raises JobNotFound, NotPossible."""
    row = _locked(s, job_id)
    if row.status not in (Status.FAILED, Status.CANCELLED):
        raise NotPossible(
            f"Only a job that failed or was cancelled can be retried: it is {row.status}.",
            Status(row.status),
            hint="Clone it to train the same once more.",
        )
    return row, parse_spec(row.spec)


def _locked(s: Session, job_id: str) -> JobRow:
    row = lock(s, JobRow.id == job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
    return row


def _unended(s: Session, job_id: str, wish: str) -> JobRow:
    row = _locked(s, job_id)
    if row.status not in (Status.QUEUED, Status.RUNNING):
        raise NotPossible(f"A job that is {row.status} cannot be {wish}.", Status(row.status))
    return row


def _refuse_other_request(row: JobRow) -> None:
    if row.request is not None:
        raise NotPossible(
            f"The job has already been asked to {row.request}.",
            Status(row.status),
            hint="Wait until its worker obeys, within a heartbeat, or cancel the job.",
        )
