"""What a training process says while it works: one JSON line each, appended to `events.jsonl` in the run folder.

A line is complete when it ends in a newline; readers stop before an unfinished one. The order of lines is the order
of time. Losses, mIoU and accuracies are fractions or plain numbers, times are seconds, `step` counts optimiser steps
from 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dsd_core.disk import FULL

Phase = Literal["baseline", "student"]
Subject = Literal["teacher", "baseline", "student"]
FurtherSeed = int | None
"""The seed of a training, None in those of the job's first (or only) seed, whose student is exported."""


def leg_name(subject: Subject, seed: FurtherSeed) -> str:
    """What the figures of a training are called: `student`, and `student/seed-1` for a further seed."""
    return subject if seed is None else f"{subject}/seed-{seed}"


def now() -> str:
    """The present as RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    at: str = Field(default_factory=now)


class Started(_Event):
    """The process has read its spec and knows what it stands on."""

    type: Literal["started"] = "started"
    spec_digest: str
    code_version: str
    device: str
    torch: str
    threads: int
    processes: int = 1
    total_steps: int  # over all phases of all seeds
    resumed_from: int | None = None  # total steps already behind this run
    teacher_digest: str | None = None
    dataset_fingerprint: str | None = None
    bit_exact: bool = True  # as in Result


class Progress(_Event):
    """Every `train.log_every` steps of a phase, and wherever gradient norms are measured (`train.norms_every`)."""

    type: Literal["progress"] = "progress"
    phase: Phase
    seed: FurtherSeed = None
    step: int  # within the phase
    steps: int  # of the phase
    total_step: int  # over all phases of all seeds
    total_steps: int
    epoch: int
    losses: dict[str, float | None]  # "loss" and each unweighted term
    grad_norms: dict[str, float | None] = {}  # "total", and where measured of each weighted term at the student's
    learning_rate: float
    images_per_s: float
    eta_s: float
    signals: dict[str, float] = {}  # hit_rate, teacher_passes, since the run began; empty without kept signals
    system: dict[str, float] = {}  # MLflow's names of system metrics, without the "system/" prefix


class Score(BaseModel):
    """A network's score on the validation split. A class that does not occur is None and in no mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    miou: float | None
    pixel_accuracy: float | None
    per_class_iou: dict[str, float | None]
    class_accuracy: float | None = None  # mean over the classes of the share of labelled pixels that are right
    per_class_accuracy: dict[str, float | None] = {}
    boundary_iou: float | None = None  # None and empty where `evaluate.boundary` is off
    per_class_boundary_iou: dict[str, float | None] = {}


class Evaluated(Score, _Event):
    """A network was scored on the validation split."""

    type: Literal["evaluated"] = "evaluated"
    subject: Subject
    seed: FurtherSeed = None
    step: int
    total_step: int
    images: int
    seconds: float


class Checkpoint(_Event):
    """A checkpoint is on disk and verified; `path` is relative to the run folder."""

    type: Literal["checkpoint"] = "checkpoint"
    phase: Phase
    seed: FurtherSeed = None
    step: int
    total_step: int
    path: str
    bytes: int
    sha256: str  # of its manifest


class Picture(_Event):
    """A PNG for people to look at; `path` is relative to the run folder."""

    type: Literal["picture"] = "picture"
    phase: Phase
    seed: FurtherSeed = None
    step: int
    total_step: int
    path: str
    caption: str


class Note(_Event):
    """A sentence for people: a warning, or a fact worth keeping."""

    type: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    message: str


class FileInfo(BaseModel):
    """One file of the exported student, `path` relative to `student/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    bytes: int
    sha256: str


class Cost(BaseModel):
    """What a network costs at the evaluation size, batch 1, without an auxiliary head. FLOPs count 2 for a
    multiply-add; latency is the median."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: str
    params: int
    flops: int
    latency_ms: float
    height: int
    width: int


class StepCost(BaseModel):
    """What the optimiser steps of one student took on average, loading, logging and checkpoints included, scoring and
    pictures not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int
    seconds_per_step: float
    cpu_seconds_per_step: float  # of the training process, over all its threads
    device: str  # cpu or cuda


class SignalsUse(BaseModel):
    """What came of keeping the teacher's signals, over all attempts and processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["image", "view"]
    key: str | None  # of the entry in the store, shared by jobs of the same teacher, data and settings; None: not kept
    records: int
    bytes: int
    hits: int  # views whose signals lay in the store
    misses: int
    hit_rate: float
    teacher_passes: int  # images or views that the teacher saw to fill it
    passes_in_loop: int  # those it would have seen without


class SeedResult(BaseModel):
    """What training with one seed came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int
    student: Score
    baseline: Score | None = None
    gain: float | None = None  # student mIoU minus baseline mIoU


class Result(BaseModel):
    """What a finished job leaves; also `result.json` in the run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    student: Score
    student_cost: Cost
    teacher: Score | None = None
    teacher_cost: Cost | None = None
    baseline: Score | None = None
    gain: float | None = None  # student mIoU minus baseline mIoU
    # `student`, `baseline` and `gain` are of the first seed, as are the files.
    seeds: list[SeedResult] = []  # in the order of training
    miou_mean: float | None = None  # over the seeds, as are the others
    miou_spread: float | None = None  # sample standard deviation, None for a single seed
    baseline_mean: float | None = None
    baseline_spread: float | None = None
    gain_mean: float | None = None
    gain_spread: float | None = None
    step_cost: StepCost | None = None  # over all students
    baseline_step_cost: StepCost | None = None
    signals: SignalsUse | None = None  # None where the teacher was in the loop, or there was none
    files: list[FileInfo]  # none of an evaluate job
    classes: list[str]
    onnx_max_error: float | None  # largest difference of softmax between ONNX and the network; None without files
    teacher_digest: str | None = None
    student_digest: str | None = None  # of the trained student's file, of an evaluate or export job
    dataset_fingerprint: str  # of the training split; of the validation split where nothing was trained
    spec_digest: str
    code_version: str
    train_seconds: float  # 0 where nothing was trained
    bit_exact: bool = True  # the weights are those of a run that was never interrupted
    stopped_early: bool = False  # on request: the student is the best so far, and later seeds are left out
    stopped_step: int | None = None  # of total_steps, where it was stopped early
    floor: float | None = None
    beats_floor: bool = True


class Finished(_Event):
    """The last line of a run that succeeded."""

    type: Literal["finished"] = "finished"
    result: Result


class Failed(_Event):
    """The last line of a run that did not."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str | None = None
    field: str | None = None


Event = Started | Progress | Evaluated | Checkpoint | Picture | Note | Finished | Failed
_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def parse(line: str | bytes | dict[str, Any]) -> Event:
    """Read one event from its JSON line or its dictionary. Raises pydantic.ValidationError."""
    return _adapter.validate_python(line) if isinstance(line, dict) else _adapter.validate_json(line)


class EventFile:
    """Appends events to `events.jsonl`; each line is written with one system call and survives the death of the
    process.

    A half-written last line (the process was killed inside the call) is cut off on opening. While the disk is full,
    lines wait in memory for the next one; only a last word does not, and raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            os.ftruncate(self._fd, text.rfind(b"\n") + 1)
        self._waiting = b""

    def __call__(self, event: Event) -> None:
        self._waiting += event.model_dump_json().encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if error.errno not in FULL or isinstance(event, Finished | Failed):
                raise

    def _write(self) -> None:
        """Append what waits, all or nothing: on a disk that fills up, a call may take a part of it."""
        end = os.fstat(self._fd).st_size
        if os.write(self._fd, self._waiting) < len(self._waiting):
            os.ftruncate(self._fd, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._waiting = b""

    def close(self) -> None:
        os.close(self._fd)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Complete lines from byte `offset` on, each with the offset after it. A missing file has none."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line[:-1], offset
