"""Run folders in a bucket: a job outlives the disk of the host it ran on, and a bucket that is away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from dsd_core.spec import JobSpec
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Reason, Status
from tests.core.small import small_spec
from tests.servers import TestBucket
from tests.worker.service import RunningWorker, Service, until
from worker.slot import TRAINING

Start = Callable[..., RunningWorker]


def host(service: Service, s3: TestBucket, name: str) -> Service:
    """The service as a worker with a disk of its own has it."""
    own = {"database_url": service.settings.db_url, "storage": s3.storage, "home": service.settings.home / name}
    return replace(service, settings=service.settings.model_copy(update=own))


@pytest.fixture
def one(service: Service, s3: TestBucket) -> Service:
    return host(service, s3, "one")


@pytest.fixture
def two(service: Service, s3: TestBucket) -> Service:
    return host(service, s3, "two")


def notes(service: Service, job: str) -> list[str]:
    return [event.data["message"] for event in service.events(job, "note")]


def found(service: Service, job: str) -> list[str]:
    """What each attempt found in its run folder when it started."""
    return [text.removeprefix("found ") for text in notes(service, job) if text.startswith("found ")]


def test_a_job_resumes_on_another_host_from_the_checkpoints_in_the_bucket(
    service: Service, s3: TestBucket, one: Service, two: Service
) -> None:
    job = service.submit("list checkpoint=1 checkpoint=2 checkpoint=3 killed_first student finish")
    assert one.run(job) == Reason.OOM_SUSPECTED
    shutil.rmtree(one.settings.home)
    assert two.run(job) == Reason.FINISHED
    assert found(service, job) == ["", "00000002-1 00000003-1"]
    kept = {"spec.json", "events.jsonl", "log.txt", "pictures/000010.png", "student/model.safetensors"}
    assert kept < s3.names(job)
    assert {name.split("/")[1] for name in s3.names(job) if "manifest" in name} == {"00000003-1", "00000003-2"}
    assert not two.folder(job).exists()


def test_the_history_goes_on_where_another_host_has_lost_the_end_of_the_events(
    service: Service, s3: TestBucket, one: Service, two: Service
) -> None:
    job = service.submit("steps=2 killed_first finish")
    one.run(job)
    copied = service.row(job).events_offset
    s3.write(job, "events.jsonl", "")
    two.run(job)
    assert len(service.events(job, "progress")) == 4
    assert service.row(job).events_offset > copied


def test_a_power_cut_that_took_the_end_of_the_events_does_not_hide_those_that_follow(service: Service) -> None:
    job = service.submit("steps=2 killed_first finish")
    service.run(job)
    file = service.folder(job) / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    assert service.run(job) == Reason.FINISHED
    assert len(service.events(job, "progress")) == 4


def test_checkpoints_that_are_damaged_or_half_there_in_the_bucket_are_passed_over(
    service: Service, s3: TestBucket, one: Service, two: Service
) -> None:
    job = service.submit("list checkpoint=1 checkpoint=2 killed_first finish")
    one.run(job)
    s3.write(job, "checkpoints/00000002-1/tensors.safetensors", "x" * 5000)
    s3.write(job, "checkpoints/00000003-1/tensors.safetensors", "half")
    assert two.run(job) == Reason.FINISHED
    assert found(service, job)[1] == "00000001-1"
    assert "00000002-1 is damaged" in s3.text(job, "log.txt")
    assert not any("00000002-1" in name or "00000003-1" in name for name in s3.names(job))


def test_the_host_that_ran_a_job_last_goes_on_from_its_own_folder_which_may_be_ahead(
    service: Service, s3: TestBucket, one: Service
) -> None:
    job = service.submit("list checkpoint=1 checkpoint=2 killed_first finish")
    one.run(job)
    s3.objects.remove(job, [name for name in s3.names(job) if "00000002-1" in name])
    assert one.run(job) == Reason.FINISHED
    assert found(service, job)[1] == "00000001-1 00000002-1"


def test_a_host_whose_copy_is_older_than_anothers_takes_the_newer(
    service: Service, s3: TestBucket, one: Service, two: Service, in_background: Start
) -> None:
    job = service.submit("list checkpoint=1 hang")
    for turn, where in enumerate((one, two, one), 1):
        worker = in_background(job, where)
        until(lambda turn=turn: notes(service, job).count("hanging") == turn)
        worker.board.shutting_down = True
        assert worker.reason() == Reason.RELEASED
    assert found(service, job) == ["", "00000001-1", "00000001-1 00000001-2"]


def test_a_bucket_that_is_away_does_not_disturb_the_training_and_no_student_is_lost(
    service: Service, s3: TestBucket, one: Service, in_background: Start
) -> None:
    job = service.submit("checkpoint=1 wait_for=go checkpoint=2 steps=3 student finish")
    worker = in_background(job, one)
    until(lambda: service.events(job, "checkpoint"))
    s3.line.cut()
    (one.folder(job) / "go").touch()
    until(lambda: service.events(job, "finished"))
    beat_at = service.row(job).heartbeat_at
    until(lambda: service.row(job).heartbeat_at != beat_at)
    assert service.row(job).status == Status.RUNNING
    s3.line.mend()
    assert worker.reason() == Reason.FINISHED
    assert "student/model.safetensors" in s3.names(job)
    assert "checkpoints/00000002-1/manifest.json" in s3.names(job)


def test_a_worker_that_shuts_down_stores_the_last_checkpoint_before_it_gives_the_job_back(
    service: Service, s3: TestBucket, one: Service, two: Service, in_background: Start
) -> None:
    job = service.submit("list checkpoint=1 hang_first finish")
    worker = in_background(job, one)
    until(lambda: service.has_noted(job, "hanging"))
    worker.board.shutting_down = True
    assert worker.reason() == Reason.RELEASED
    assert two.run(job) == Reason.FINISHED
    assert found(service, job)[1] == "00000001-1"


def test_a_worker_that_shuts_down_while_the_bucket_is_away_gives_the_job_back_all_the_same(
    service: Service, s3: TestBucket, one: Service, in_background: Start, caplog: pytest.LogCaptureFixture
) -> None:
    job = service.submit("hang_first finish")
    worker = in_background(job, one, grace_s=1)
    until(lambda: service.has_noted(job, "hanging"))
    s3.line.cut()
    worker.board.shutting_down = True
    assert worker.reason() == Reason.RELEASED
    assert "job.not_stored" in caplog.text
    assert service.row(job).status == Status.QUEUED


def test_a_cancel_reaches_a_job_that_waits_for_the_bucket(
    service: Service, s3: TestBucket, one: Service, in_background: Start
) -> None:
    s3.line.cut()
    job = service.submit("finish")
    worker = in_background(job, one)
    until(lambda: service.row(job).status == Status.RUNNING)
    service.cancel(job)
    assert worker.reason() == Reason.CANCELLED_BY_USER
    assert service.pids(job) == []


def test_a_registered_teacher_is_fetched_from_the_bucket(service: Service, s3: TestBucket, one: Service) -> None:
    teacher = service.submit("student finish")
    one.run(teacher)
    with db.begin(service.engine) as s:
        store.add_model_version(s, name="teacher", version=1, job_id=teacher, files=[], tags={})
    job = service.submit("finish", kind="distill", teacher={"model": "teacher/1"})
    assert one.run(job) == Reason.FINISHED
    given = s3.text(job, "tries.txt").split()[1]
    assert given == str(one.folder(job) / "inputs" / teacher / "student" / "model.safetensors")


def test_copies_of_ended_jobs_that_a_killed_worker_left_are_stored_and_deleted(
    service: Service, s3: TestBucket, one: Service
) -> None:
    left = service.submit("hang", name="left")
    service.cancel(left)
    one.folder(left).mkdir(parents=True)
    (one.folder(left) / "copy").write_text("token")
    s3.write(left, "copy", "token")
    (one.folder(left) / "log.txt").write_text("its last words")
    one.run(service.submit("finish"))
    assert s3.text(left, "log.txt") == "its last words"
    assert not one.folder(left).exists()


def test_storage_without_its_package_or_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write a folder, or s3://bucket/prefix"):
        Settings(storage="gs://bucket/prefix")


@pytest.mark.faults_only
@pytest.mark.fault("F11")
def test_the_real_child_resumes_on_another_host_and_ends_with_the_very_weights(
    service: Service, s3: TestBucket, one: Service, two: Service, in_background: Start
) -> None:
    one, two = (replace(where, command=TRAINING) for where in (one, two))
    whole, broken = (submit(service, small_spec(None, train__epochs=3, train__checkpoint_every_s=0.0)) for _ in "12")
    assert one.run(whole) == Reason.FINISHED
    worker = in_background(broken, one)
    until(lambda: any(name.endswith("manifest.json") for name in s3.names(broken)))
    [child] = [process for process in psutil.Process().children() if "dsd_core" in process.cmdline()]
    child.kill()
    assert worker.reason() == Reason.OOM_SUSPECTED
    shutil.rmtree(one.settings.home)
    assert two.run(broken) == Reason.FINISHED
    assert service.events(broken, "started")[1].data["resumed_from"] > 0
    weights = [sha256_of(service, job, "model.safetensors") for job in (whole, broken)]
    assert weights[0] == weights[1]


def submit(service: Service, spec: JobSpec) -> str:
    with db.begin(service.engine) as s:
        return store.submit(s, spec, max_attempts=3)[0].id


def sha256_of(service: Service, job: str, name: str) -> str:
    result = service.row(job).result
    assert result is not None
    return next(str(file["sha256"]) for file in result["files"] if file["path"] == name)
