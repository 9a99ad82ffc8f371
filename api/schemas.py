"""The service's answers, and what may be changed of a job. (The body of a submission is `dsd_core.spec.JobSpec`.)

Every key is always there, null where nothing is known. Times are RFC 3339 in UTC with milliseconds, durations seconds,
mIoU and accuracies fractions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from dsd_core.parts import LabelText, Slug
from dsd_core.parts import Part as SpecPart
from jobs.status import Drain, Reason, Request, Status
from jobs.store import Part, Waiting

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
    """Null until the model is registered; a job of kind evaluate registers none."""
    tracking: Literal["pending", "synced", "stalled"]
    """Whether MLflow has everything of this job; stalled: its last try failed, and it goes on trying."""
    tracking_error: str | None


class JobMlflow(Answer):
    """Where MLflow shows a job."""

    run_id: str | None
    url: str | None


class Need(Answer):
    """A job that another needs."""

    id: str
    status: Status


class Job(Answer):
    """A job and what has become of it."""

    id: str
    name: str
    kind: str
    labels: dict[str, str]
    priority: int
    """Higher ones are claimed first."""
    group: str
    """Groups share the workers fairly."""
    needs: list[Need]
    """Jobs that must succeed before this one starts."""
    retry_of: str | None
    """The job whose checkpoints this one goes on from."""
    cloned_from: str | None
    """The job whose spec this one's was made from."""
    status: Status
    reason: Reason | None
    """Why it is in this status."""
    request: Request | None
    """What it is asked and has not obeyed yet."""
    waiting_for: Waiting | None
    """Why a queued job does not run: it is `paused`, `needs` other jobs, is in `back_off` until `not_before`; no live
    `worker` has what it asks for; the `broker` has not got its message; or it waits for its turn, a `slot`."""
    progress: Progress | None
    queue_position: int | None
    """1 for the next by priority and time of submission; null for one that runs, has ended, is paused or waits for
    others."""
    estimated_start_at: Time | None
    """By what jobs of this name, or else of this kind, took; null where nothing is known, and in lists."""
    estimated_finish_at: Time | None
    """By its own progress, or else as above."""
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
    paused_at: Time | None
    not_before: Time | None
    """After a failure its next try is not before."""
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


class JobWishes(SpecPart):
    """What a job shall have from now on; a field that is left out or null stays as it is."""

    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    """Of a job that has not ended."""
    labels: dict[Slug, LabelText | None] | None = None
    """Set beside those it has; null takes one away."""


class JobEvent(Answer):
    """A line of a job's history: a move of its status, what was asked of it, or what the training process said."""

    seq: int
    """1, 2, 3 … without gaps."""
    at: Time
    type: str
    """`status`; `request`, for what somebody asked of the job; `pruned`: files were deleted to free storage; or of a
    training event: started, progress, evaluated, checkpoint, picture, note, finished, failed."""
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


class Worker(Answer):
    """A worker that is or was there."""

    name: str
    live: bool
    """It was heard of within a lease."""
    host: str
    device: Literal["cpu", "cuda"]
    devices: list[str]
    """Its GPUs."""
    memory_gib: float
    """RAM, or the memory of its smallest GPU."""
    labels: dict[str, str]
    job_id: str | None
    """What it runs."""
    drain: Drain | None
    """It takes no further job: `after_job` ends the one it has, `now` gives it back with a checkpoint."""
    started_at: Time
    heartbeat_at: Time


class Workers(Answer):
    """All workers, by name; one that was not heard of for a day is no longer listed."""

    data: list[Worker]


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
    signal_bytes: int
    """Of teachers' signals, which lie beside the run folders and have a limit of their own: `GET /signals`."""
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


class SignalsEntry(Answer):
    """What a teacher said about a dataset, image by image or view by view."""

    key: str
    """A digest of all that it depends on."""
    about: Json
    """What it is of, as its job said; empty where the entry is damaged."""
    bytes: int
    records: int
    filled: int
    """Records that are there; the others have yet to be computed."""
    created_at: Time
    used_at: Time
    """When a job last began or ended to use it."""
    in_use: bool
    whole: bool
    """False: it is damaged, is never used, and is made anew by the next job that wants it."""


class Signals(Answer):
    """The store of teachers' signals."""

    place: str
    """A folder."""
    limit_bytes: int
    bytes: int
    """Of all entries."""
    data: list[SignalsEntry]


class VerifiedSignals(Answer):
    """An entry after a look at all its records."""

    key: str
    filled: int
    """Records that are there and right."""
    damaged: int
    """Records that were damaged, and are forgotten now."""
    whole: bool
    """False: all of it was damaged, and is removed unless a job uses it."""


class SignalsVerified(Answer):
    """What was found damaged."""

    damaged: int
    """Records, and entries that were damaged as a whole."""
    data: list[VerifiedSignals]


class SignalsPruned(Answer):
    """What was removed from the store of teachers' signals."""

    dry_run: bool
    """Whether nothing was deleted."""
    bytes: int
    """Of what was removed."""
    data: list[SignalsEntry]
    in_use: list[SignalsEntry]
    """What would have gone, were no job using it."""


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
