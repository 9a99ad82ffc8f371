"""What retention deletes, and what it never does."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from dsd_core.signals.store import Store
from jobs import db, store
from jobs.retention import Removal, Rules, prune, prune_signals, usage
from jobs.status import Reason
from jobs.storage import Folder
from jobs.store import Part
from jobs.tables import JobRow, ModelRow
from tests.jobs.builders import a_queued_job, claimed, history, job

DEFAULT = Rules(keep_checkpoint_days=7, keep_days=None, keep_bytes=None, mirrored=True)
NOTHING_KEPT = Rules(keep_checkpoint_days=0, keep_days=0, keep_bytes=0, mirrored=True)
FILES = {"checkpoints/1-1/tensors.safetensors": 100, "log.txt": 10, "student/model.safetensors": 50}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def storage(root: Path) -> Folder:
    return Folder(root)


def write(root: Path, job_id: str, files: dict[str, int] = FILES) -> None:
    for name, size in files.items():
        path = root / "runs" / job_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))


def files_of(root: Path, job_id: str) -> set[str]:
    folder = root / "runs" / job_id
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def an_ended_job(engine: Engine, root: Path, *, days: float = 30, synced: bool = True, **fields: object) -> str:
    """A job that has succeeded some days ago, with its run folder."""
    job_id = a_queued_job(engine, **fields)
    claim = claimed(engine, job_id)
    with db.begin(engine) as s:
        store.finish(s, claim, Reason.FINISHED, result={}, run_seconds=1)
        ended = db.db_now(s) - timedelta(days=days)
        s.execute(update(JobRow).where(JobRow.id == job_id).values(finished_at=ended))
        if synced:
            row = store.get(s, job_id)
            assert row is not None
            store.set_tracking(s, job_id, tracking="synced", tracking_seq=row.last_seq)
    write(root, job_id)
    return job_id


def register(engine: Engine, job_id: str, version: int, *aliases: str) -> None:
    with db.begin(engine) as s:
        store.add_model_version(s, name="student", version=version, job_id=job_id, files=[], tags={})
        known = store.model_aliases(s).get("student", {})
        store.set_aliases(s, "student", known | dict.fromkeys(aliases, version))


def told(removals: list[Removal]) -> list[tuple[str, Part]]:
    return [(removal.job_id, removal.part) for removal in removals]


def test_by_default_only_checkpoints_of_jobs_that_ended_a_week_ago_go(
    engine: Engine, storage: Folder, root: Path
) -> None:
    old, young = an_ended_job(engine, root, days=8), an_ended_job(engine, root, days=6)
    [removal] = prune(engine, storage, DEFAULT)
    assert (removal.job_id, removal.part, removal.bytes) == (old, Part.CHECKPOINTS, 100)
    assert files_of(root, old) == {"log.txt", "student/model.safetensors"}
    assert files_of(root, young) == set(FILES)
    assert job(engine, old).checkpoints_gone_at is not None and job(engine, old).files_gone_at is None
    assert history(engine, old)[-1].data == {"part": "checkpoints", "bytes": 100, "why": removal.why}
    assert prune(engine, storage, DEFAULT) == []


def test_a_dry_run_says_what_would_go_and_why_and_deletes_nothing(
    sqlite_engine: Engine, storage: Folder, root: Path
) -> None:
    old = an_ended_job(sqlite_engine, root)
    [removal] = prune(sqlite_engine, storage, DEFAULT, dry_run=True)
    assert removal.why == "the job ended 30.0 days ago, more than 7"
    assert files_of(root, old) == set(FILES) and job(sqlite_engine, old).checkpoints_gone_at is None
    assert not (root / "installation").exists()


def test_by_age_the_run_folder_goes_but_not_the_student_that_was_registered(
    sqlite_engine: Engine, storage: Folder, root: Path
) -> None:
    registered, failed_to_be = an_ended_job(sqlite_engine, root), an_ended_job(sqlite_engine, root)
    register(sqlite_engine, registered, 1)
    prune(sqlite_engine, storage, replace(DEFAULT, keep_days=14))
    assert files_of(root, registered) == {"student/model.safetensors"}
    assert not (root / "runs" / failed_to_be).exists()
    assert job(sqlite_engine, registered).files_gone_at is not None
    assert job(sqlite_engine, registered).tracking == "pending"  # for MLflow's copies to follow


def test_what_mlflow_has_yet_to_get_stays_but_for_checkpoints(
    sqlite_engine: Engine, storage: Folder, root: Path
) -> None:
    waiting = an_ended_job(sqlite_engine, root, synced=False)
    assert told(prune(sqlite_engine, storage, NOTHING_KEPT)) == [(waiting, Part.CHECKPOINTS)]


def test_by_bytes_the_oldest_checkpoints_go_first_then_runs_then_students_without_an_alias(
    sqlite_engine: Engine, storage: Folder, root: Path
) -> None:
    older, newer = an_ended_job(sqlite_engine, root, days=3), an_ended_job(sqlite_engine, root, days=2)
    register(sqlite_engine, older, 1, "champion")
    register(sqlite_engine, newer, 2)
    in_order = [(older, Part.CHECKPOINTS), (newer, Part.CHECKPOINTS), (older, Part.RUN), (newer, Part.RUN)]
    in_order.append((newer, Part.STUDENT))
    for limit, going in ((320, 0), (319, 1), (220, 1), (219, 2), (119, 3), (109, 4), (99, 5), (0, 5)):
        rules = replace(DEFAULT, keep_bytes=limit)
        assert told(prune(sqlite_engine, storage, rules, dry_run=True)) == in_order[:going]
    prune(sqlite_engine, storage, replace(DEFAULT, keep_bytes=0))
    with db.reading(sqlite_engine) as s:
        marks = {model.version: model.files_gone_at for model in s.query(ModelRow)}
    assert marks[1] is None and marks[2] is not None
    assert files_of(root, newer) == {"student/model.safetensors"}  # until MLflow has let it go


@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize("reference", ["model", "weights"])
def test_nothing_goes_that_a_job_which_has_not_ended_uses(
    sqlite_engine: Engine, storage: Folder, root: Path, reference: str, state: str
) -> None:
    teacher = an_ended_job(sqlite_engine, root)
    register(sqlite_engine, teacher, 1)
    path = root / "runs" / teacher / "student" / "model.safetensors"
    source = {"model": "student/1"} if reference == "model" else {"weights": str(path), "network": "espnet"}
    user = a_queued_job(sqlite_engine, kind="distill", teacher=source)
    if state == "running":
        claimed(sqlite_engine, user)
    write(root, user)
    assert prune(sqlite_engine, storage, NOTHING_KEPT) == []
    assert files_of(root, teacher) == files_of(root, user) == set(FILES)


def test_nothing_goes_that_a_retry_will_go_on_from(sqlite_engine: Engine, storage: Folder, root: Path) -> None:
    first, second = an_ended_job(sqlite_engine, root), an_ended_job(sqlite_engine, root)
    third = a_queued_job(sqlite_engine)
    with db.begin(sqlite_engine) as s:
        for job_id, before in ((second, first), (third, second)):
            s.execute(update(JobRow).where(JobRow.id == job_id).values(retry_of=before))
    assert prune(sqlite_engine, storage, NOTHING_KEPT) == []


def test_a_deletion_that_was_cut_short_is_taken_up_again(sqlite_engine: Engine, storage: Folder, root: Path) -> None:
    old = an_ended_job(sqlite_engine, root)
    prune(sqlite_engine, storage, DEFAULT)
    write(root, old, {"checkpoints/1-1/state.json": 5})
    [removal] = prune(sqlite_engine, storage, DEFAULT)
    assert (removal.bytes, removal.why) == (5, "its deletion was cut short")
    assert "checkpoints/1-1/state.json" not in files_of(root, old)


def test_half_written_files_of_ended_jobs_go_at_once(sqlite_engine: Engine, storage: Folder, root: Path) -> None:
    young = an_ended_job(sqlite_engine, root, days=0)
    write(root, young, {"checkpoints/2-1.tmp/tensors.safetensors": 7, "result.tmp": 1})
    [removal] = prune(sqlite_engine, storage, DEFAULT)
    assert (removal.part, removal.bytes) == (Part.LEFT_OVER, 8)
    assert files_of(root, young) == set(FILES)
    assert not (root / "runs" / young / "checkpoints" / "2-1.tmp").exists()


def test_a_run_folder_of_no_known_job_goes_after_a_day(sqlite_engine: Engine, storage: Folder, root: Path) -> None:
    old, young, other = "0" * 19, "1" * 19, "not-a-job"
    for name in (old, young, other):
        write(root, name)
    for path in (path for name in (old, other) for path in (root / "runs" / name).rglob("*") if path.is_file()):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert told(prune(sqlite_engine, storage, DEFAULT)) == [(old, Part.ORPHAN)]
    assert {path.name for path in (root / "runs").iterdir()} == {young, other}


def test_folders_of_another_database_on_the_same_storage_stay(
    sqlite_engine: Engine, storage: Folder, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put_note("installation", "of another")
    write(root, "0" * 19)
    for path in (root / "runs" / ("0" * 19)).rglob("*"):
        os.utime(path, (0, 0))
    assert prune(sqlite_engine, storage, NOTHING_KEPT) == []
    assert "storage.of_another_database" in caplog.text


def test_the_usage_tells_checkpoints_students_and_the_rest(sqlite_engine: Engine, storage: Folder, root: Path) -> None:
    register(sqlite_engine, an_ended_job(sqlite_engine, root), 1)
    an_ended_job(sqlite_engine, root)
    found = usage(sqlite_engine, storage, Store(root / "signals"))
    assert (found.runs, found.bytes) == (2, 320)
    assert (found.checkpoint_bytes, found.student_bytes, found.other_bytes) == (200, 50, 70)


def test_teachers_signals_are_kept_within_their_limit_and_are_no_run_folders(
    sqlite_engine: Engine, storage: Folder, root: Path
) -> None:
    signals = Store(root / "signals")
    for key in ("a1", "b1", "c1"):
        signals.open(key, [1000], {}).close()
    for left in ("d1-0.signals.tmp", "e1-0.signals.gone"):
        (root / "signals" / left).mkdir()
    for path in (root / "signals").rglob("*"):
        os.utime(path, (1e9, 1e9) if path.parent.name != "b1.signals" else None)
    sizes = {entry.key: entry.bytes for entry in signals.entries()}
    held = sum(sizes.values())
    used = usage(sqlite_engine, storage, signals)
    assert (used.runs, used.bytes, used.signal_bytes) == (0, 0, held)
    assert prune(sqlite_engine, storage, NOTHING_KEPT) == []
    assert len(signals.entries()) == 3
    with signals.open("a1", [1000], {}):
        prune_signals(Store(root / "signals", limit_bytes=sizes["a1"] + sizes["b1"]))
        assert {entry.key for entry in signals.entries()} == {"a1", "b1"}
        assert not [path for path in (root / "signals").iterdir() if path.suffix in (".tmp", ".gone")]
        prune_signals(Store(root / "signals", limit_bytes=0))
        assert [entry.key for entry in signals.entries()] == ["a1"]
