"""What may go from the storage and why, and its deletion.

Never anything that a queued or running job uses, nor a student that an alias stands for, nor what MLflow has yet to
get. A deletion is written down before it begins, and one that was cut short is taken up again by the next round; so it
is safe to run twice, also at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from dsd_core.fault_points import fault_point
from dsd_core.signals.store import Store
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Status
from jobs.storage import Entry, Runs, Storage
from jobs.store import Kept, Part

log = logging.getLogger(__name__)

ORPHAN_DAYS = 1.0
OWNER = "installation"  # beside the run folders: the database whose they are
BATCH = 100  # removals written down in one transaction

PARTS = {"checkpoints": Part.CHECKPOINTS, "student": Part.STUDENT}
BY_BYTES = (Part.CHECKPOINTS, Part.RUN, Part.STUDENT)  # what goes first


@dataclass(frozen=True)
class Removal:
    """Files that may go."""

    job_id: str
    name: str | None  # of the job, where there is one
    part: Part
    bytes: int
    files: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Rules:
    """The settings that retention follows; see `Settings`."""

    keep_checkpoint_days: float
    keep_days: float | None
    keep_bytes: int | None
    mirrored: bool  # there is an MLflow, which must have a job before more of it than its checkpoints goes


def rules_of(settings: Settings) -> Rules:
    return Rules(
        settings.keep_checkpoint_days, settings.keep_days, settings.keep_bytes, settings.mlflow_url is not None
    )


def prune(engine: Engine, storage: Storage, rules: Rules, *, dry_run: bool = False) -> list[Removal]:
    """Delete what the rules let go; returns it. A student goes as soon as MLflow has let its version go.

    With `dry_run` nothing is deleted. Raises StorageError.
    """
    runs, owner = storage.runs(), storage.note(OWNER)
    with db.reading(engine) as s:
        mine, jobs, used, now = store.installation(s), store.kept_jobs(s, list(runs)), store.in_use(s), db.db_now(s)
    if owner not in (None, mine):
        log.warning("storage.of_another_database place=%s: folders of unknown jobs stay", storage.place)
    removals = plan(runs, jobs, used, rules, now, orphans=owner in (None, mine))
    if owner is None and not dry_run:
        storage.put_note(OWNER, mine)
    if dry_run:
        return removals
    return [removal for batch in _batches(removals) for removal in _carry_out(engine, storage, batch)]


def prune_signals(signals: Store) -> None:
    """Keep teachers' signals within their limit, also where that was lowered, and remove what killed processes left
    half made. Raises StorageError."""
    for entry in signals.prune(to_bytes=signals.limit_bytes).removed:
        log.info("signals.pruned key=%s bytes=%s", entry.key, entry.bytes)


@dataclass(frozen=True)
class Usage:
    """What the storage holds, in bytes."""

    runs: int  # run folders
    bytes: int
    checkpoint_bytes: int
    student_bytes: int  # of registered versions
    other_bytes: int
    signal_bytes: int  # of teachers' signals, beside all of these


def usage(engine: Engine, storage: Storage, signals: Store) -> Usage:
    """Raises StorageError."""
    runs = storage.runs()
    with db.reading(engine) as s:
        jobs = store.kept_jobs(s, list(runs))
    sizes = dict.fromkeys(Part, 0)
    for job_id, files in runs.items():
        for part, some in _parts(files, jobs.get(job_id)).items():
            sizes[part] += _bytes(some)
    checkpoints, students = sizes.pop(Part.CHECKPOINTS), sizes.pop(Part.STUDENT)
    rest = sum(sizes.values())
    kept = sum(entry.bytes for entry in signals.entries())
    return Usage(len(runs), checkpoints + students + rest, checkpoints, students, rest, kept)


def plan(
    runs: Runs, jobs: dict[str, Kept], used: set[str], rules: Rules, now: datetime, *, orphans: bool
) -> list[Removal]:
    """What the rules let go, of all files there are. `orphans`: folders of no known job are ours to delete."""
    parts = {job_id: _parts(files, jobs.get(job_id)) for job_id, files in runs.items()}
    removals: list[Removal] = []
    for job_id, files in runs.items():
        if job_id in used:
            continue
        if (job := jobs.get(job_id)) is None:
            removals += _orphan(job_id, files, now) if orphans else ()
        elif job.finished_at is not None:
            removals += _by_age(job, parts[job_id], rules, now - job.finished_at)
    if rules.keep_bytes is None:
        return removals
    ended = sorted((job for job in jobs.values() if job.finished_at and job.job_id not in used), key=_finished_at)
    total = sum(entry.bytes for files in runs.values() for entry in files.values())
    excess = total - sum(removal.bytes for removal in removals) - rules.keep_bytes
    taken = {(removal.job_id, removal.part) for removal in removals}
    for part, job in ((part, job) for part in BY_BYTES for job in ended):
        files = parts[job.job_id].get(part, {})
        if excess > 0 and files and (job.job_id, part) not in taken and _may_go(job, part, rules):
            removals.append(_removal(job, part, files, f"the storage holds more than {rules.keep_bytes} bytes"))
            excess -= removals[-1].bytes
    return removals


def _by_age(job: Kept, parts: dict[Part, dict[str, Entry]], rules: Rules, age: timedelta) -> Iterator[Removal]:
    days = age / timedelta(days=1)
    limits = {Part.CHECKPOINTS: rules.keep_checkpoint_days, Part.RUN: rules.keep_days}
    for part, files in parts.items():
        limit = limits.get(part)
        if part is Part.LEFT_OVER:
            yield _removal(job, part, files, "half-written by a process that was killed")
        elif part in job.gone and part is not Part.STUDENT:
            yield _removal(job, part, files, "its deletion was cut short")
        elif limit is not None and days > limit and _may_go(job, part, rules):
            yield _removal(job, part, files, f"the job ended {days:.1f} days ago, more than {limit:g}")


def _may_go(job: Kept, part: Part, rules: Rules) -> bool:
    if part in job.gone:
        return False
    if part is Part.CHECKPOINTS:
        return True
    if part is Part.STUDENT:
        return job.synced and rules.mirrored and not job.aliases
    return job.synced or (not rules.mirrored and job.status != Status.SUCCEEDED)


def _parts(files: dict[str, Entry], job: Kept | None) -> dict[Part, dict[str, Entry]]:
    """The files by what they go with: a student that was not registered goes with the rest of its run."""
    found: dict[Part, dict[str, Entry]] = {}
    for name, entry in files.items():
        part = PARTS.get(name.partition("/")[0], Part.RUN)
        if ".tmp/" in name or name.endswith(".tmp"):
            part = Part.LEFT_OVER
        elif part is Part.STUDENT and job is not None and not job.registered:
            part = Part.RUN
        found.setdefault(part, {})[name] = entry
    return found


def _orphan(job_id: str, files: dict[str, Entry], now: datetime) -> Iterator[Removal]:
    newest = max((entry.changed_at for entry in files.values()), default=now)
    if store.is_job_id(job_id) and now - newest > timedelta(days=ORPHAN_DAYS):
        yield Removal(job_id, None, Part.ORPHAN, _bytes(files), tuple(files), "there is no such job")


def _removal(job: Kept, part: Part, files: dict[str, Entry], why: str) -> Removal:
    return Removal(job.job_id, job.name, part, _bytes(files), tuple(files), why)


def _carry_out(engine: Engine, storage: Storage, batch: list[Removal]) -> list[Removal]:
    """Write down what goes, then delete it; but not what has come into use meanwhile."""
    with db.begin(engine) as s:
        used = store.in_use(s)
        known = store.kept_jobs(s, [removal.job_id for removal in batch])
        marked = [removal for removal in batch if removal.job_id not in used and _marked(s, removal, known)]
    fault_point("retention.after_mark")
    for removal in marked:
        if removal.part is not Part.STUDENT:
            storage.remove(removal.job_id, removal.files)
        log.info(
            "storage.pruned job=%s part=%s bytes=%s why=%s", removal.job_id, removal.part, removal.bytes, removal.why
        )
    return marked


def _marked(s: Session, removal: Removal, known: dict[str, Kept]) -> bool:
    """Whether the removal may still be carried out, and is written down where it has to be."""
    job = known.get(removal.job_id)
    if removal.part is Part.ORPHAN:
        return job is None
    if job is None or (removal.part is Part.STUDENT and job.aliases):
        return False
    if removal.part is Part.LEFT_OVER or removal.part in job.gone:
        return job.finished_at is not None
    return store.mark_gone(s, job.job_id, removal.part, {"bytes": removal.bytes, "why": removal.why})


def _batches(removals: list[Removal]) -> Iterator[list[Removal]]:
    for start in range(0, len(removals), BATCH):
        yield removals[start : start + BATCH]


def _bytes(files: dict[str, Entry]) -> int:
    return sum(entry.bytes for entry in files.values())


def _finished_at(job: Kept) -> datetime:
    assert job.finished_at is not None
    return job.finished_at
