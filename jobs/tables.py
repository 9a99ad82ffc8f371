"""The tables. JobRow is the truth about a job; messages, run folders and MLflow's runs are derived from it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.status import Status

Json = dict[str, Any]


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes in and out. SQLite keeps no time zone, PostgreSQL answers in that of the session."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {Json: JSON(none_as_null=True), datetime: UtcDateTime}


TRACKING = ("pending", "synced", "stalled")  # MLflow lacks events; has them all; lacks some and the last try failed


def _one_of(column: str, names: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(str(name)) for name in names)})"


class JobRow(Base):
    """One job. `status` moves only along `status.MOVES`, each move one guarded UPDATE and one JobEventRow."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)  # sorts by time of submission
    name: Mapped[str] = mapped_column(String(80))
    kind: Mapped[str] = mapped_column(String(20))
    spec: Mapped[Json]
    spec_digest: Mapped[str] = mapped_column(String(64))
    labels: Mapped[Json]

    retry_of: Mapped[str | None] = mapped_column(String(40))  # an ended job whose checkpoints this one goes on from
    cloned_from: Mapped[str | None] = mapped_column(String(40))

    priority: Mapped[int] = mapped_column(Integer, default=0)  # higher first
    group: Mapped[str] = mapped_column("group_name", String(80), default="default")
    line: Mapped[str | None] = mapped_column(String(120))  # `queueing.line_of`; None: it cannot be claimed
    needs_left: Mapped[int] = mapped_column(Integer, default=0)  # jobs it needs that have not succeeded yet
    paused_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]  # back-off: the next try is not before

    status: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(String(40))
    request: Mapped[str | None] = mapped_column(String(20))  # what a running job is asked; one of status.Request
    error: Mapped[Json | None]  # code, message, hint, field, log_tail
    attempt: Mapped[int] = mapped_column(Integer, default=1)  # counts from 1
    max_attempts: Mapped[int] = mapped_column(Integer)
    releases: Mapped[int] = mapped_column(Integer, default=0)
    crash_step: Mapped[int | None] = mapped_column(BigInteger)  # where the last attempt died of a signal
    fence: Mapped[int] = mapped_column(BigInteger, default=0)  # raised by every claim and every loss of a claim
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]  # when the newest claim began
    run_seconds: Mapped[float] = mapped_column(default=0.0)  # over all claims that have ended

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]  # of the current attempt
    started_at: Mapped[datetime | None]  # of the first attempt
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]

    progress: Mapped[Json | None]  # the newest progress event
    result: Mapped[Json | None]  # events.Result
    result_fence: Mapped[int | None] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(Integer, default=0)  # of job_events
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes of events.jsonl already in job_events

    tracking: Mapped[str] = mapped_column(String(20), default="pending")  # one of TRACKING, never a status
    tracking_seq: Mapped[int] = mapped_column(Integer, default=0)  # last event MLflow has
    tracking_error: Mapped[str | None] = mapped_column(Text)
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    model_version: Mapped[int | None] = mapped_column(Integer)

    checkpoints_gone_at: Mapped[datetime | None]  # when retention took them; deleted then or soon after
    files_gone_at: Mapped[datetime | None]  # the same for everything but the files of a registered student

    __table_args__ = (
        CheckConstraint(_one_of("status", tuple(Status)), name="status"),
        CheckConstraint(_one_of("tracking", TRACKING), name="tracking"),
        Index(None, "status", "id"),
        Index(None, "name", "id"),
        Index(None, "kind", "id"),
        Index(None, "group_name", "id"),
        Index(None, "line", "id"),
        Index(None, "status", "lease_expires_at"),
        Index(None, "tracking", "id"),
    )


class JobEventRow(Base):
    """The history of a job, append-only: moves of its status and the training process's own events, in one order."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)  # 1, 2, 3 … without gaps
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(40))  # `status`, or the type of a dsd_core event
    data: Mapped[Json]


class JobLabelRow(Base):
    """The labels of `JobRow.labels`, once more, so that a label finds its jobs among a million."""

    __tablename__ = "job_labels"
    __table_args__ = (Index(None, "key", "value", "job_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(80), primary_key=True)
    value: Mapped[str] = mapped_column(String(200))


class JobNeedRow(Base):
    """`job_id` waits until `need_id` has succeeded."""

    __tablename__ = "job_needs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    need_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)


class OutboxRow(Base):
    """A message to publish, written in the transaction that made the job claimable; other jobs have none."""

    __tablename__ = "outbox"
    __table_args__ = ({"sqlite_autoincrement": True},)  # an id is not given twice: a late `mark_sent` hits nothing
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True, unique=True)
    attempt: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime]
    next_try_at: Mapped[datetime] = mapped_column(index=True)
    tries: Mapped[int] = mapped_column(Integer, default=0)
    sent_at: Mapped[datetime | None]


class WebhookRow(Base):
    """A message to the address a job names, written in the transaction that ended the job."""

    __tablename__ = "webhooks"
    __table_args__ = (Index(None, "delivered_at", "next_try_at"), {"sqlite_autoincrement": True})
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)  # the receiver sees it: once an end
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(Text)
    payload: Mapped[Json]
    created_at: Mapped[datetime]
    next_try_at: Mapped[datetime | None]  # None: it is not tried again
    tries: Mapped[int] = mapped_column(Integer, default=0)
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)  # of the last try


class WorkerRow(Base):
    """A worker that is or was there, as it last said."""

    __tablename__ = "workers"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(20))  # cpu or cuda
    devices: Mapped[list[str]] = mapped_column(JSON)
    memory_gib: Mapped[float]
    labels: Mapped[Json]
    job_id: Mapped[str | None] = mapped_column(String(40))  # what it runs
    drain: Mapped[str | None] = mapped_column(String(20))  # one of status.Drain: it takes no job
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]


class IdempotencyRow(Base):
    """The job a client's Idempotency-Key has made; `fingerprint` is the digest of the spec it asked for."""

    __tablename__ = "idempotency"
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]


class ModelRow(Base):
    """A registered version: MLflow's number, and where its files lie. Downloads do not need MLflow."""

    __tablename__ = "models"
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # path, bytes, sha256; below the run folder's student/
    tags: Mapped[Json]
    miou: Mapped[float | None]
    created_at: Mapped[datetime]
    files_gone_at: Mapped[datetime | None]  # when retention took the student's files


class ModelAliasRow(Base):
    """MLflow's aliases, as the controller last saw them."""

    __tablename__ = "model_aliases"
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    alias: Mapped[str] = mapped_column(String(200), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)


class InstallationRow(Base):
    """The one row that tells this database from others which use the same storage or MLflow."""

    __tablename__ = "installation"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
