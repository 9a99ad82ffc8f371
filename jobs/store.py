"""All reads and writes of job state. Each function takes a Session the caller has begun: `jobs.db.begin`, `reading`.

A status moves only in `_move`: one guarded UPDATE and one `job_events` row of type "status", in one transaction.
A worker's writes carry its Claim; a lost claim (the fence has risen) changes nothing. Time is the database's clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from dsd_core.spec import JobSpec
from jobs.db import db_now
from jobs.status import MOVES, OUTCOMES, TERMINAL, Reason, Status
from jobs.tables import IdempotencyRow, JobEventRow, JobRow, Json, ModelAliasRow, ModelRow, OutboxRow

MAX_RELEASES = (
    20  # more of them cost an attempt each, so that a job which a worker's shutdown always meets comes to an end
)
RELAY_HOLD_S = 10.0  # an outbox row handed to a relay is not handed to another for this long
CLAIMED = (Status.RUNNING, Status.CANCELLING)


class JobNotFound(DsdError):
    """There is no such job."""

    code: ClassVar[str] = "job_not_found"


class NotCancellable(DsdError):
    """The job has already ended."""

    code: ClassVar[str] = "not_cancellable"

    def __init__(self, status: Status) -> None:
        super().__init__(f"The job has already ended: it is {status}.")
        self.status = status


class IdempotencyConflict(DsdError):
    """The Idempotency-Key was used for another request."""

    code: ClassVar[str] = "idempotency_conflict"


@dataclass(frozen=True)
class Claim:
    """The right to run a job, good while the row's fence is this one. `run_seconds` are those of all claims before."""

    job_id: str
    attempt: int
    fence: int
    worker: str
    spec: Json
    events_offset: int
    run_seconds: float


# --- people's side ----------------------------------------------------------------------------------------------------


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
    if old := _job_of_key(s, idempotency_key, fingerprint):
        return old, False
    try:
        with s.begin_nested():
            row = _insert_job(s, spec, max_attempts)
            s.add(
                IdempotencyRow(key=idempotency_key, fingerprint=fingerprint, job_id=row.id, created_at=row.created_at)
            )
        return row, True
    except IntegrityError:  # another submission with this key has committed meanwhile
        if old := _job_of_key(s, idempotency_key, fingerprint):
            return old, False
        raise


def get(s: Session, job_id: str) -> JobRow | None:
    return s.get(JobRow, job_id, populate_existing=True)


def list_page(
    s: Session,
    *,
    limit: int,
    after: str | None = None,
    status: str | None = None,
    name: str | None = None,
    kind: str | None = None,
    label: tuple[str, str] | None = None,
) -> tuple[list[JobRow], bool]:
    """Jobs older than the id `after`, newest first, and whether there are more. `label` is a key and its value."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(JobRow.id < after)
    for column, wanted in ((JobRow.status, status), (JobRow.name, name), (JobRow.kind, kind)):
        if wanted is not None:
            query = query.where(column == wanted)
    if label is not None:
        query = query.where(JobRow.labels[label[0]].as_string() == label[1])
    rows = list(s.scalars(query))
    return rows[:limit], len(rows) > limit


def queue_position(s: Session, row: JobRow) -> int | None:
    """1 for the job that was queued first; None for one that is not queued."""
    if row.status != Status.QUEUED:
        return None
    earlier = (JobRow.queued_at < row.queued_at) | ((JobRow.queued_at == row.queued_at) & (JobRow.id < row.id))
    query = select(func.count()).select_from(JobRow).where(JobRow.status == Status.QUEUED, earlier)
    return 1 + s.execute(query).scalar_one()


def request_cancel(s: Session, job_id: str) -> JobRow:
    """End a queued job, or ask a running one to end; once this is committed the job cannot succeed.

    Asking again changes nothing. Raises JobNotFound, and NotCancellable where the job has ended.
    """
    row = _lock(s, JobRow.id == job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
    status = Status(row.status)
    if status in TERMINAL:
        raise NotCancellable(status)
    if status is Status.CANCELLING:
        return row
    now = db_now(s)
    if status is Status.QUEUED:
        ended: Json = {"cancel_requested_at": now, "finished_at": now}
        return _moved(_move(s, row, Status.CANCELLED, Reason.CANCELLED_BY_USER, now, **ended))
    return _moved(_move(s, row, Status.CANCELLING, Reason.CANCELLED_BY_USER, now, cancel_requested_at=now))


def events_after(
    s: Session, job_id: str, seq: int, limit: int, types: Collection[str] | None = None
) -> list[JobEventRow]:
    """The history after `seq`, oldest first; of some types only where `types` is given."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
    if types is not None:
        query = query.where(JobEventRow.type.in_(types))
    return list(s.scalars(query.order_by(JobEventRow.seq).limit(limit)))


# --- the worker's side ------------------------------------------------------------------------------------------------


def claim(s: Session, job_id: str, attempt: int, worker: str, lease_s: float) -> Claim | None:
    """Take a queued job. None: someone else has it, it has ended, or the message was of another attempt."""
    row = _lock(s, JobRow.id == job_id, JobRow.status == Status.QUEUED, JobRow.attempt == attempt)
    if row is None:
        return None
    now = db_now(s)
    row = _moved(
        _move(
            s,
            row,
            Status.RUNNING,
            None,
            now,
            fence=JobRow.fence + 1,
            worker=worker,
            lease_expires_at=now + timedelta(seconds=lease_s),
            heartbeat_at=now,
            started_at=func.coalesce(JobRow.started_at, now),
        )
    )
    return Claim(row.id, row.attempt, row.fence, worker, row.spec, row.events_offset, row.run_seconds)


def beat(s: Session, claim: Claim, lease_s: float) -> Status | None:
    """Renew the lease and hear the status, which is how a cancel arrives. None: the claim is lost."""
    now = db_now(s)
    renewed = (
        update(JobRow)
        .where(*_holds(claim))
        .values(heartbeat_at=now, lease_expires_at=now + timedelta(seconds=lease_s), updated_at=now)
        .returning(JobRow.status)
        .execution_options(synchronize_session=False)
    )
    status = s.execute(renewed).scalar_one_or_none()
    return None if status is None else Status(status)


def append_events(s: Session, claim: Claim, events: Sequence[tuple[Json, int]]) -> bool:
    """Copy events of the run folder, each with the offset after its line, into the history. False: the claim is lost.

    Events at or before the row's offset are already there and are left out, so the same batch may be sent again.
    """
    row = _lock(s, *_holds(claim))
    if row is None:
        return False
    new = [(event, offset) for event, offset in events if offset > row.events_offset]
    if not new:
        return True
    now = db_now(s)
    s.add_all(
        JobEventRow(job_id=row.id, seq=row.last_seq + i, at=_time_of(event, now), type=event["type"], data=event)
        for i, (event, _) in enumerate(new, start=1)
    )
    row.progress = next((event for event, _ in reversed(new) if event["type"] == "progress"), row.progress)
    row.last_seq += len(new)
    row.events_offset = new[-1][1]
    row.tracking = "pending"
    row.updated_at = now
    s.flush()
    return True


def finish(
    s: Session,
    claim: Claim,
    reason: Reason,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
) -> Status | None:
    """End the run as `status.OUTCOMES` says: for good, or queued again while attempts remain. None: the claim is lost.

    A job that is being cancelled becomes cancelled whatever the reason. `run_seconds` are those of all attempts, this
    one included.
    """
    row = _lock(s, *_holds(claim))
    if row is None:
        return None
    return _end_claim(s, row, reason, db_now(s), result=result, error=error, run_seconds=run_seconds)


def release(s: Session, claim: Claim, run_seconds: float) -> bool:
    """Give a job back because the worker shuts down; the attempt is not consumed. False: the claim is lost."""
    row = _lock(s, *_holds(claim))
    if row is None:
        return False
    _end_claim(s, row, Reason.RELEASED, db_now(s), run_seconds=run_seconds)
    return True


# --- the controller's side --------------------------------------------------------------------------------------------


def expire_leases(s: Session, *, now: datetime | None = None, limit: int = 100) -> list[str]:
    """Take jobs from workers that have not been heard of; returns their ids. `now` defaults to the database's clock."""
    now = now or db_now(s)
    lapsed = (JobRow.lease_expires_at.is_(None)) | (JobRow.lease_expires_at < now)
    query = select(JobRow).where(JobRow.status.in_(CLAIMED), lapsed).order_by(JobRow.id).limit(limit)
    rows = list(s.scalars(query.with_for_update(skip_locked=True), execution_options={"populate_existing": True}))
    for row in rows:
        error = DsdError(
            f"The worker {row.worker} was not heard of since {row.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Look at that machine: it may have been switched off, lost its network or run out of memory.",
        ).as_dict() | {"code": str(Reason.WORKER_LOST)}
        _end_claim(s, row, Reason.WORKER_LOST, now, error=error, run_seconds=row.run_seconds + _seconds_heard(s, row))
    return [row.id for row in rows]


def due_outbox(s: Session, limit: int) -> list[OutboxRow]:
    """Messages to publish now, oldest first. They are not handed out again for RELAY_HOLD_S.

    Commit, publish, then call `mark_sent` or `mark_failed`. A relay that dies between makes a duplicate; `claim`
    refuses those.
    """
    now = db_now(s)
    due = select(OutboxRow).where(OutboxRow.sent_at.is_(None), OutboxRow.next_try_at <= now)
    rows = list(s.scalars(due.order_by(OutboxRow.id).limit(limit).with_for_update(skip_locked=True)))
    for row in rows:
        row.next_try_at = now + timedelta(seconds=RELAY_HOLD_S)
    s.flush()
    return rows


def mark_sent(s: Session, ids: Collection[int]) -> None:
    _update_outbox(s, OutboxRow.id.in_(ids), sent_at=db_now(s), tries=OutboxRow.tries + 1)


def mark_failed(s: Session, ids: Collection[int], delay_s: float) -> None:
    """Try these messages again after `delay_s`."""
    later = db_now(s) + timedelta(seconds=delay_s)
    _update_outbox(s, OutboxRow.id.in_(ids), next_try_at=later, tries=OutboxRow.tries + 1)


def redispatch(s: Session, older_than_s: float) -> int:
    """Announce again the queued jobs whose message was sent longer ago than this; says how many."""
    now = db_now(s)
    lost = OutboxRow.sent_at < now - timedelta(seconds=older_than_s)
    return _update_outbox(s, lost, sent_at=None, next_try_at=now)


def tracking_due(s: Session, limit: int) -> list[JobRow]:
    """Jobs of which MLflow lacks events; those whose last try failed come after the others."""
    found: list[JobRow] = []
    for tracking in ("pending", "stalled"):
        query = select(JobRow).where(JobRow.tracking == tracking).order_by(JobRow.id).limit(limit - len(found))
        found += s.scalars(query, execution_options={"populate_existing": True})
    return found


def set_tracking(s: Session, job_id: str, **fields: Any) -> None:
    """Set `tracking`, `tracking_seq`, `tracking_error`, `mlflow_run_id` or `model_version`.

    A job whose history has grown beyond `tracking_seq` stays pending where `synced` is asked for.
    """
    unknown = set(fields) - {"tracking", "tracking_seq", "tracking_error", "mlflow_run_id", "model_version"}
    assert not unknown, f"not tracking fields: {sorted(unknown)}"
    values = dict(fields)
    if fields.get("tracking") == "synced":
        behind = JobRow.last_seq > fields.get("tracking_seq", JobRow.tracking_seq)
        values["tracking"] = case((behind, "pending"), else_="synced")
    s.execute(
        update(JobRow).where(JobRow.id == job_id).values(values), execution_options={"synchronize_session": False}
    )


# --- registered models ------------------------------------------------------------------------------------------------


def add_model_version(
    s: Session,
    *,
    name: str,
    version: int,
    job_id: str,
    files: list[dict[str, Any]],
    tags: Json,
    miou: float | None = None,
) -> ModelRow:
    """Write down a registered version; one that is already there is brought up to date."""
    row = s.get(ModelRow, (name, version)) or ModelRow(name=name, version=version, created_at=db_now(s))
    row.job_id, row.files, row.tags, row.miou = job_id, files, tags, miou
    s.add(row)
    s.flush()
    return row


def set_aliases(s: Session, name: str, aliases: dict[str, int]) -> None:
    """Make these the aliases of a model, and no others."""
    s.execute(delete(ModelAliasRow).where(ModelAliasRow.name == name))
    s.add_all(ModelAliasRow(name=name, alias=alias, version=version) for alias, version in aliases.items())
    s.flush()


def list_models(s: Session) -> list[ModelRow]:
    """All registered versions, by name, newest version first."""
    return list(s.scalars(select(ModelRow).order_by(ModelRow.name, ModelRow.version.desc())))


def model_aliases(s: Session) -> dict[str, dict[str, int]]:
    """The version of each alias of each model: {name: {alias: version}}."""
    found: dict[str, dict[str, int]] = {}
    for row in s.scalars(select(ModelAliasRow).order_by(ModelAliasRow.name, ModelAliasRow.alias)):
        found.setdefault(row.name, {})[row.alias] = row.version
    return found


def get_model_version(s: Session, name: str, alias_or_version: str) -> ModelRow | None:
    """A version by its number or an alias. None: there is no such model, version or alias."""
    if alias_or_version.isdecimal():
        return s.get(ModelRow, (name, int(alias_or_version)))
    alias = s.get(ModelAliasRow, (name, alias_or_version))
    return s.get(ModelRow, (name, alias.version)) if alias else None


# --- under all of them ------------------------------------------------------------------------------------------------


def _lock(s: Session, *where: ColumnElement[bool]) -> JobRow | None:
    """The row as it is now, kept from other writers until the transaction ends. (SQLite's writer holds everything.)"""
    query = select(JobRow).where(*where).with_for_update()
    return s.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def _holds(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status.in_(CLAIMED)


def _move(s: Session, row: JobRow, to: Status, reason: Reason | None, now: datetime, **values: Any) -> JobRow | None:
    """Move the status from what `row` says, if it and the fence still are so, and write it into the history."""
    before, fence, worker = Status(row.status), row.fence, row.worker
    assert (before, to) in MOVES, f"{before} -> {to} is no legal move"
    moved = s.scalars(
        update(JobRow)
        .where(JobRow.id == row.id, JobRow.status == before, JobRow.fence == fence)
        .values(status=to, reason=reason, last_seq=JobRow.last_seq + 1, tracking="pending", updated_at=now, **values)
        .returning(JobRow),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one_or_none()
    if moved is None:
        return None
    _record_move(s, moved, before, moved.worker or worker, now)
    if before is Status.QUEUED:
        s.execute(delete(OutboxRow).where(OutboxRow.job_id == moved.id))
    if to is Status.QUEUED:
        _announce(s, moved, now)
    return moved


def _moved(row: JobRow | None) -> JobRow:
    assert row is not None, "a locked row has moved"
    return row


def _record_move(s: Session, row: JobRow, before: Status | None, worker: str | None, now: datetime) -> None:
    """`attempt` and `fence` are those after the move; `worker` is who had or has the job."""
    data = {
        "from": before,
        "to": row.status,
        "reason": row.reason,
        "attempt": row.attempt,
        "fence": row.fence,
        "worker": worker,
    }
    s.add(JobEventRow(job_id=row.id, seq=row.last_seq, at=now, type="status", data=data))
    s.flush()


def _announce(s: Session, row: JobRow, now: datetime) -> None:
    s.add(OutboxRow(job_id=row.id, attempt=row.attempt, created_at=now, next_try_at=now))
    s.flush()


def _end_claim(
    s: Session,
    row: JobRow,
    reason: Reason,
    now: datetime,
    *,
    result: Json | None = None,
    error: Json | None = None,
    run_seconds: float,
) -> Status:
    """Move a locked, claimed job to where `reason` takes it."""
    values: Json = {"lease_expires_at": None, "run_seconds": run_seconds}
    to, again = _where_to(row, reason)
    if to is Status.QUEUED:
        values |= {"fence": JobRow.fence + 1, "worker": None, "queued_at": now, "error": error, **again}
    elif to is Status.SUCCEEDED:
        values |= {"finished_at": now, "result": result, "result_fence": row.fence, "error": None}
    else:
        values |= {"fence": JobRow.fence + 1, "finished_at": now, "error": error}
    if to is Status.CANCELLED:
        reason = Reason.CANCELLED_BY_USER
    return Status(_moved(_move(s, row, to, reason, now, **values)).status)


def _where_to(row: JobRow, reason: Reason) -> tuple[Status, Json]:
    if row.status == Status.CANCELLING:
        return Status.CANCELLED, {}
    if reason is Reason.RELEASED and row.releases < MAX_RELEASES:
        return Status.QUEUED, {"releases": JobRow.releases + 1}
    if reason is Reason.RELEASED or OUTCOMES[reason].retry:
        again = row.attempt < row.max_attempts
        return (Status.QUEUED, {"attempt": JobRow.attempt + 1}) if again else (Status.FAILED, {})
    return OUTCOMES[reason].status, {}


def _insert_job(s: Session, spec: JobSpec, max_attempts: int) -> JobRow:
    now = db_now(s)
    row = JobRow(
        id=_new_id(s, now),
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
    _record_move(s, row, None, None, now)
    _announce(s, row, now)
    return row


def _new_id(s: Session, now: datetime) -> str:
    """Microseconds since 1970 and 40 random bits, in base 32. Ids rise even when the clock stands or is set back."""
    micros = int(now.timestamp() * 1e6)
    newest = s.execute(select(func.max(JobRow.id))).scalar_one()
    if newest:
        micros = max(micros, _from_base32(newest[:11]) + 1)
    return _to_base32(micros, 11) + _to_base32(secrets.randbits(40), 8)


_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def _to_base32(number: int, length: int) -> str:
    return "".join(_DIGITS[number >> 5 * i & 31] for i in reversed(range(length)))


def _from_base32(text: str) -> int:
    number = 0
    for digit in text:
        number = number * 32 + _DIGITS.index(digit)
    return number


def _job_of_key(s: Session, key: str, fingerprint: str) -> JobRow | None:
    used = s.scalars(select(IdempotencyRow).where(IdempotencyRow.key == key)).one_or_none()
    if used is None:
        return None
    if used.fingerprint != fingerprint:
        raise IdempotencyConflict(
            f"The Idempotency-Key {key!r} was used for another request, which made job {used.job_id}.",
            hint="Take a new key for a new request.",
        )
    return s.get(JobRow, used.job_id)


def _seconds_heard(s: Session, row: JobRow) -> float:
    """From the claim to the last sign of life."""
    moves = select(JobEventRow).where(JobEventRow.job_id == row.id, JobEventRow.type == "status")
    claimed = (e for e in s.scalars(moves.order_by(JobEventRow.seq.desc())) if e.data["to"] == Status.RUNNING)
    began = next(claimed, None)
    if began is None or row.heartbeat_at is None:
        return 0.0
    return max(0.0, (row.heartbeat_at - began.at).total_seconds())


def _time_of(event: Json, otherwise: datetime) -> datetime:
    try:
        at = datetime.fromisoformat(event["at"])
    except (KeyError, TypeError, ValueError):
        return otherwise
    return at if at.tzinfo else otherwise


def _update_outbox(s: Session, where: ColumnElement[bool], **values: Any) -> int:
    changed = update(OutboxRow).where(where).values(**values).returning(OutboxRow.id)
    return len(s.execute(changed, execution_options={"synchronize_session": False}).all())
