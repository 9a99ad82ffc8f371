"""Finished jobs compared: method by method for each student, from the `spec.json` and `result.json` in their folders.

A training is one student with one seed. Trainings that differ in their seed alone make a row; rows whose jobs share
data, schedule and way of scoring make a comparison. The gain of a training is over the same student, seed and schedule
without the teacher: its job's own baseline, else that of another job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dsd_core.distill.presets import PRESETS, Loss, preset_losses
from dsd_core.errors import DataError, SpecError
from dsd_core.events import Cost, Phase, Result, SeedResult, StepCost
from dsd_core.legs import losses_of
from dsd_core.spec import JobSpec, load_spec
from dsd_core.spread import mean_and_spread

Setup = tuple[tuple[str, str], ...]
"""What must be alike for two trainings to be compared, as (name, JSON)."""
Key = TypeVar("Key")
Value = TypeVar("Value")

NO_TEACHER = "no teacher"
WITHOUT_EFFECT = {
    "train": {"seed", "loaders", "threads", "log_every", "checkpoint_every_s", "checkpoints_kept", "resume"},
    "dataset": {"root"},
}
SCORING = {"mode", "window", "stride", "scales", "flip"}


@dataclass(frozen=True)
class Job:
    """A finished job."""

    folder: Path
    spec: JobSpec
    result: Result


@dataclass(frozen=True)
class Note:
    """Something about a folder that a reader of the comparison must know."""

    folder: str
    message: str


@dataclass(frozen=True)
class Training:
    """One student that was trained with one seed.

    `kind` (JSON) is the same for those of a setup that differ in their seed alone; `plain` is the kind of training
    without a teacher to compare it with.
    """

    job: Job
    phase: Phase
    setup: Setup
    kind: str
    plain: str
    seed: int
    miou: float | None
    own_gain: float | None
    step: StepCost | None


@dataclass(frozen=True)
class Row:
    """One method with one student, over its seeds. Times are of an optimiser step: processor time on a CPU, which
    other programs disturb less, time on the wall on other devices."""

    student: str
    method: str
    seeds: tuple[int, ...]
    miou_mean: float | None
    miou_spread: float | None
    gain_mean: float | None
    gain_spread: float | None
    gain_seeds: tuple[int, ...]
    params: int
    flops: int
    step_ms: float | None
    step_ratio: float | None
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Rows that may be compared: same data, schedule and way of scoring."""

    title: str
    rows: list[Row]


def compare(folders: Iterable[Path]) -> tuple[list[Comparison], list[Note]]:
    """The finished jobs in and below `folders` as comparisons, and what to know about folders that were passed over.

    Raises DataError for a folder that does not exist, and where there is no finished job.
    """
    jobs, notes = read_jobs(folders)
    if not jobs:
        told = "".join(f"\n  {note.folder}: {note.message}" for note in notes)
        raise DataError(
            f"There is no finished job to compare.{told}",
            hint="Give run folders, or folders that hold some: a finished one has spec.json and result.json.",
        )
    trainings, twice = _once([training for job in jobs for training in _trainings(job)])
    setups = _grouped((training.setup, training) for training in trainings)
    titles = _titles(list(setups))
    return [Comparison(titles[setup], _rows(members)) for setup, members in setups.items()], notes + twice


# --- reading ----------------------------------------------------------------------------------------------------------


def read_jobs(folders: Iterable[Path]) -> tuple[list[Job], list[Note]]:
    """Every run folder in and below these, in the order of their names; those that cannot be used as notes."""
    jobs, notes = [], []
    for folder in sorted({run for top in folders for run in _run_folders(top)}):
        try:
            job = _read_job(folder)
        except DataError as error:
            notes.append(Note(str(folder), error.message))
            continue
        jobs.append(job)
        if job.spec.digest() != job.result.spec_digest:
            changed = "spec.json is not as it was when the job ran, or is from another version of dsd."
            notes.append(Note(str(folder), changed))
    return jobs, notes


def _run_folders(top: Path) -> Iterator[Path]:
    if not top.is_dir():
        raise DataError(f"There is no folder {top}.")
    for folder, _, files in os.walk(top):
        if not {"spec.json", "result.json"}.isdisjoint(files):
            yield Path(folder)


def _read_job(folder: Path) -> Job:
    for name, missing in (("result.json", "The job has not finished"), ("spec.json", "What was trained is not known")):
        if not (folder / name).is_file():
            raise DataError(f"{missing}: there is no {name}.")
    try:
        result = Result.model_validate_json((folder / "result.json").read_bytes())
        spec = load_spec(folder / "spec.json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"/{part}" for part in first["loc"])
        raise DataError(f"result.json cannot be read: {place or '/'}: {first['msg']}") from error
    except (OSError, SpecError) as error:
        raise DataError(str(error)) from error
    if not spec.trains:
        raise DataError(f"A job of kind {spec.kind} has trained nothing to compare.")
    return Job(folder, spec, result)


# --- trainings --------------------------------------------------------------------------------------------------------


def _trainings(job: Job) -> Iterator[Training]:
    result = job.result
    # Results of older versions have no list of seeds, for they have one.
    alone = SeedResult(seed=job.spec.train.seed, student=result.student, baseline=result.baseline, gain=result.gain)
    for found in result.seeds or [alone]:
        yield _training(job, "student", found.seed, found.student.miou, found.gain)
        if found.baseline is not None:
            yield _training(job, "baseline", found.seed, found.baseline.miou, None)


def _training(job: Job, phase: Phase, seed: int, miou: float | None, gain: float | None) -> Training:
    return Training(
        job=job,
        phase=phase,
        setup=_setup(job),
        kind=_kind(job, phase),
        plain=_kind(job, "baseline"),
        seed=seed,
        miou=miou,
        own_gain=gain,
        step=job.result.step_cost if phase == "student" else job.result.baseline_step_cost,
    )


def _setup(job: Job) -> Setup:
    spec = job.spec
    scoring = SCORING | ({"every_epochs"} if spec.train.keep == "best" else set())
    parts: dict[str, Any] = {
        "dataset": spec.dataset.model_dump(mode="json", exclude=WITHOUT_EFFECT["dataset"]),
        "train": spec.train.model_dump(mode="json", exclude=WITHOUT_EFFECT["train"]),
        "evaluate": spec.evaluate.model_dump(mode="json", include=scoring),
        "data": {"fingerprint": job.result.dataset_fingerprint},
    }
    return tuple((f"{part}.{name}", _json(value)) for part, fields in parts.items() for name, value in fields.items())


def _kind(job: Job, phase: Phase) -> str:
    """Student and losses; teacher and taps too, where one of the losses needs them."""
    spec, student, losses = job.spec, job.spec.student, losses_of(job.spec, phase)
    kind: dict[str, Any] = {
        "student": student.model_dump(mode="json", exclude={"taps"}),
        "losses": [loss.model_dump(mode="json") for loss in losses],
    }
    if any(loss.uses_teacher for loss in losses) and spec.teacher is not None:
        kind |= {"teacher": job.result.teacher_digest, "taps": [student.taps, spec.teacher.taps]}
    return _json(kind)


def _once(trainings: list[Training]) -> tuple[list[Training], list[Note]]:
    """The first training of each kind and seed, students before baselines; another student is noted."""
    kept: dict[tuple[Any, ...], Training] = {}
    notes = []
    for training in sorted(trainings, key=lambda training: training.phase == "baseline"):
        first = kept.setdefault((training.setup, training.kind, training.seed), training)
        if first is not training and training.phase == "student":
            again = f"Seed {training.seed} of this training is there already, from {first.job.folder}; it is left out."
            notes.append(Note(str(training.job.folder), again))
    return list(kept.values()), notes


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(trainings: list[Training]) -> list[Row]:
    """The rows of one setup: by student, without a teacher first, then the best first."""
    kinds = _grouped((training.kind, training) for training in trainings)
    titles = _methods(kinds)
    rows = [_row(titles[kind], members, kinds) for kind, members in kinds.items()]
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    return row.student, row.params, row.flops, not row.method.startswith(NO_TEACHER), -(row.miou_mean or 0.0)


def _row(method: str, members: list[Training], kinds: dict[str, list[Training]]) -> Row:
    first = members[0]
    plain = kinds.get(first.plain, []) if first.kind != first.plain else []
    gains = _gains(members, plain)
    (miou_mean, miou_spread), (gain_mean, gain_spread) = (
        mean_and_spread(values) for values in ([training.miou for training in members], list(gains.values()))
    )
    step = _pooled(members)
    cost: Cost = first.job.result.student_cost
    return Row(
        student=cost.network,
        method=method,
        seeds=tuple(sorted(training.seed for training in members)),
        miou_mean=miou_mean,
        miou_spread=miou_spread,
        gain_mean=gain_mean,
        gain_spread=gain_spread,
        gain_seeds=tuple(sorted(gains)),
        params=cost.params,
        flops=cost.flops,
        step_ms=None if step is None else 1000 * _seconds(step),
        step_ratio=_ratio(step, _pooled(plain)),
        jobs=tuple(dict.fromkeys(str(training.job.folder) for training in members)),
    )


def _gains(members: list[Training], plain: list[Training]) -> dict[int, float]:
    """The gain of each seed that has one."""
    without = {training.seed: training.miou for training in plain}
    gains = {}
    for training in members:
        other = without.get(training.seed)
        if training.own_gain is not None:
            gains[training.seed] = training.own_gain
        elif training.miou is not None and other is not None:
            gains[training.seed] = training.miou - other
    return gains


def _pooled(members: list[Training]) -> StepCost | None:
    """The mean over all steps of the jobs; None where it is not known, or where they ran on unlike devices."""
    costs = [cost for cost in {training.job.folder: training.step for training in members}.values() if cost is not None]
    if len({cost.device for cost in costs}) != 1:
        return None
    steps = sum(cost.steps for cost in costs)
    return StepCost(
        steps=steps,
        seconds_per_step=sum(cost.steps * cost.seconds_per_step for cost in costs) / steps,
        cpu_seconds_per_step=sum(cost.steps * cost.cpu_seconds_per_step for cost in costs) / steps,
        device=costs[0].device,
    )


def _ratio(cost: StepCost | None, plain: StepCost | None) -> float | None:
    if cost is None or plain is None or cost.device != plain.device or not _seconds(plain):
        return None
    return _seconds(cost) / _seconds(plain)


def _seconds(cost: StepCost) -> float:
    return cost.cpu_seconds_per_step if cost.device == "cpu" else cost.seconds_per_step


# --- names ------------------------------------------------------------------------------------------------------------


def _methods(kinds: dict[str, list[Training]]) -> dict[str, str]:
    """A name for each kind of training, different ones for those of one student: where the short names are alike, with
    the losses, and where those are alike too, with the job's name."""
    named = {kind: [method_name(members[0])] for kind, members in kinds.items()}
    for more in (_described, lambda training: training.job.spec.name):
        alike = _grouped(((_student(kinds[kind]), tuple(parts)), kind) for kind, parts in named.items())
        for kind in (kind for group in alike.values() if len(group) > 1 for kind in group):
            named[kind].append(more(kinds[kind][0]))
    return {kind: ": ".join(dict.fromkeys(parts)) for kind, parts in named.items()}


def _student(members: list[Training]) -> tuple[str, int]:
    cost = members[0].job.result.student_cost
    return cost.network, cost.params


def method_name(training: Training) -> str:
    """The preset of these losses, whatever the options of those that need no teacher; else the losses themselves."""
    if training.kind == training.plain:
        return NO_TEACHER
    own = _essence(losses_of(training.job.spec, training.phase))
    return next((name for name in PRESETS if _essence(preset_losses(name)) == own), _described(training))


def _essence(losses: Sequence[Loss]) -> list[Any]:
    return [loss if loss.uses_teacher else (loss.loss, loss.weight) for loss in losses]


def _described(training: Training) -> str:
    """`ce + psd + 10 csd`."""
    losses = losses_of(training.job.spec, training.phase)
    return " + ".join(loss.term if loss.weight == 1 else f"{_weight(loss)} {loss.term}" for loss in losses)


def _titles(setups: list[Setup]) -> dict[Setup, str]:
    """Dataset, size and epochs of each setup, and those fields in which the setups differ."""
    varied = {
        name for setup in setups for name, value in setup if any(dict(other).get(name) != value for other in setups)
    }
    shown = {}
    for setup in setups:
        fields = {name: json.loads(value) for name, value in setup}
        size = fields["dataset.size"]
        always = [
            fields["dataset.name"],
            *([f"{size[0]}x{size[1]}"] if size else []),
            "1 epoch" if fields["train.epochs"] == 1 else f"{fields['train.epochs']} epochs",
        ]
        rest = sorted(varied - {"dataset.name", "dataset.size", "train.epochs"})
        shown[setup] = ", ".join([*always, *(f"{name} {_short(fields[name])}" for name in rest)])
    return shown


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, both in the order they come."""
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _weight(loss: Loss) -> str:
    return loss.weight if isinstance(loss.weight, str) else f"{loss.weight:g}"
