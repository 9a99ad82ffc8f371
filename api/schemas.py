"""The service's answers. (The body of a submission is `dsd_core.spec.JobSpec`.)

Every key is always there, null where nothing is known. Times are RFC 3339 in UTC with milliseconds, durations seconds,
mIoU and accuracies fractions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from jobs.status import Reason, Status
from jobs.store import Part

Json = dict[str, Any]


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]
SpecJson = Annotated[Json, WithJsonSchema({"allOf": [{"$ref": "#/components/schemas/JobSpec"}]})]
ResultJson = Annotated[Json, WithJsonSchema({"allOf": [{"$ref": "#/components/schemas/Result"}]})]


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Progress(Answer):
    """How far a job is, by its newest progress event."""

    percent: float
    """Of all steps of all phases and seeds, 0 to 100."""
    phase: Literal["baseline", "student"]
    seed: int | None = None
    """Null while the job's first (or only) seed is trained."""
    epoch: int
    step: int
    """Optimiser steps of this phase that are done."""
    steps: int
    total_step: int
    """Over all phases of all seeds."""
    total_steps: int
    images_per_s: float
    eta_s: float
    """Seconds left, as the training process estimates."""


class JobError(Answer):
    """Why a job failed or what its last attempt died of."""

    code: str
    message: str
    hint: str | None = None
    """What to do."""
    field: str | None = None
    """JSON pointer into the spec."""
    log_tail: str | None = None
    """The last lines the training process printed."""


class JobModel(Answer):
    """The model a job is to register, or has registered."""

    name: str
    version: int | None
    """Null until the model is registered."""
    tracking: Literal["pending", "synced", "stalled"]
    """Whether MLflow has everything of this job; stalled: its last try failed, and it goes on trying."""
    tracking_error: str | None


class JobMlflow(Answer):
    """Where MLflow shows a job."""

    run_id: str | None
    url: str | None


class Job(Answer):
    """A job and what has become of it."""

    id: str
    name: str
    kind: str
    labels: dict[str, str]
    status: Status
    reason: Reason | None
    """Why it is in this status."""
    progress: Progress | None
    queue_position: int | None
    """1 for the job that has waited longest; null for one that is not queued."""
    attempt: int
    max_attempts: int
    worker: str | None
    spec: SpecJson
    """With every default filled."""
    spec_digest: str
    result: ResultJson | None
    error: JobError | None
    model: JobModel
    mlflow: JobMlflow
    run_seconds: float
    """Time of running over all attempts, without time in the queue."""
    last_seq: int
    """Number of the newest event."""
    created_at: Time
    queued_at: Time
    started_at: Time | None
    finished_at: Time | None
    cancel_requested_at: Time | None
    heartbeat_at: Time | None
    checkpoints_gone_at: Time | None
    """When its checkpoints were deleted to free storage."""
    files_gone_at: Time | None
    """When its log, events and pictures were deleted to free storage."""
    updated_at: Time


class JobPage(Answer):
    """Jobs, the newest first."""

    data: list[Job]
    has_more: bool
    next_cursor: str | None
    """Pass it as `after` for the next page; null on the last."""


class JobEvent(Answer):
    """A line of a job's history: a move of its status, or what the training process said."""

    seq: int
    """1, 2, 3 … without gaps."""
    at: Time
    type: str
    """`status`, or the type of a training event: started, progress, evaluated, checkpoint, picture, note, finished,
    failed; or `pruned`: files were deleted to free storage."""
    data: Json


class EventPage(Answer):
    """Events, the oldest first."""

    data: list[JobEvent]
    has_more: bool
    next_cursor: int
    """Pass it as `after` for the next page; the same again where there is no event yet."""


class Metrics(Answer):
    """Series of a job's numbers, by the names they have in MLflow."""

    data: dict[str, list[tuple[int, float]]]
    """For each name its points (step over all phases and seeds, value), in the order of steps."""


class Finding(Answer):
    """Something worth knowing about a job that does not stop it."""

    level: Literal["info", "warning"]
    field: str
    """JSON pointer into the spec."""
    message: str


class Estimates(BaseModel):
    """What a job will take: counts from the dataset, and a duration where a job like it has run."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    duration_s: float | None
    basis: str
    """What the duration is based on."""


class Validation(Answer):
    """A job that could be queued."""

    spec: SpecJson
    """With every default filled."""
    digest: str
    """sha256 of the spec."""
    findings: list[Finding]
    estimates: Estimates


class ModelFile(Answer):
    """A file of a registered student."""

    path: str
    bytes: int
    sha256: str
    url: str
    """Where to download it."""


class ModelVersion(Answer):
    """A registered student."""

    name: str
    version: int
    aliases: list[str]
    miou: float | None
    """On the validation split."""
    job_id: str
    tags: dict[str, Any]
    files: list[ModelFile]
    created_at: Time
    files_gone_at: Time | None
    """When its files were deleted to free storage."""


class Model(Answer):
    """A registered model: all versions of one name, the newest first."""

    name: str
    aliases: dict[str, int]
    """The version each alias stands for."""
    versions: list[ModelVersion]


class Models(Answer):
    """All registered models, by name."""

    data: list[Model]


class StorageUse(Answer):
    """What the storage holds, and what retention lets go."""

    place: str
    """A folder, or `s3://bucket/prefix`."""
    runs: int
    """Run folders."""
    bytes: int
    """Of all of them."""
    checkpoint_bytes: int
    student_bytes: int
    """Of registered versions."""
    other_bytes: int
    """Logs, events, pictures, and students that were not registered."""
    keep_checkpoint_days: float
    keep_days: float | None
    keep_bytes: int | None


class Removal(Answer):
    """Files of a job that go, or have gone."""

    job_id: str
    name: str | None
    """Of the job; null for a folder of no known job."""
    part: Part
    """checkpoints; run: log, events and pictures; student: a registered version; left-over: half-written files; orphan:
    a folder of no known job."""
    bytes: int
    why: str


class Pruned(Answer):
    """What retention lets go. A registered student goes when MLflow has let its version go."""

    dry_run: bool
    """Whether nothing was deleted."""
    bytes: int
    """Of all removals."""
    data: list[Removal]


class Network(Answer):
    """A network that a spec may name."""

    name: str
    description: str
    needs_encoder: bool
    options: list[str]
    """What may stand in its `options`."""
    stride: int
    """Images whose sides are no multiples of this are padded."""


class Encoders(Answer):
    """Encoders for the networks that need one."""

    count: int
    """How many fit the search."""
    names: list[str]
    """The first 100 of them."""


class Catalog(Answer):
    """What a spec may name."""

    networks: list[Network]
    encoders: Encoders
    losses: list[Json]
    """Each with name, description, whether it needs a teacher, and the JSON Schema of its fields."""
    presets: dict[str, list[Json]]
    """Losses by one name."""
    datasets: list[Json]
    """Each with name, description, whether it needs a root, and the JSON Schema of its fields."""
    zoo_teachers: list[Json]
    """Networks with published weights: each with name, what it was trained on, number of classes, and licence."""
    job_schema: Json
    """JSON Schema of a whole job: the body of a submission."""


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    type: str
    title: str
    status: int
    detail: str
    """What is wrong."""
    instance: str
    """The path that was asked."""
    code: str
    """Stable, to switch on."""
    hint: str | None
    """What to do."""
    errors: list[FieldProblem]
    """Each wrong field."""


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    field: str
    """JSON pointer into the body, or `query:NAME`, `path:NAME`, `header:NAME`."""
    message: str
    hint: str | None
