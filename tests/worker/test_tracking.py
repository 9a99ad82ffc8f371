"""What people find in MLflow, and that MLflow's troubles are not the jobs'."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import mlflow
import numpy as np
import pytest

from jobs import db, store
from jobs.status import Status
from jobs.store import Part
from tests.servers import TestBucket
from tests.worker.mlflow_server import MlflowServer
from tests.worker.service import Service, until
from tests.worker.tiny_student import write_student
from worker.tracking import Tracker

NEVER = Event()
CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture
def tracker(service: Service, mlflow_server: MlflowServer) -> Iterator[Tracker]:
    tracker = Tracker(service.settings, mlflow_server.url)
    yield tracker
    tracker.close()


def finished(service: Service, name: str, script: str = "steps=3 finish", **fields: Any) -> str:
    job = service.submit(script, name=name, **fields)
    write_student(service.folder(job) / "student")
    service.run(job)
    return job


def artifacts(tracker: Tracker, run_id: str, path: str | None = None) -> set[str]:
    return {item.path for item in tracker.client.list_artifacts(run_id, path)}


@pytest.mark.slow
def test_a_finished_job_is_one_run_and_one_model_that_predicts_masks(
    service: Service, tracker: Tracker, tmp_path: Path
) -> None:
    job = finished(service, "whole")
    assert tracker.round(NEVER)
    row = service.row(job)
    assert (row.tracking, row.tracking_error, row.model_version) == ("synced", None, 1)

    run = tracker.client.get_run(row.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.data.tags["job_id"] == job
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.metrics["student/miou"] == 0.5
    history = tracker.client.get_metric_history(row.mlflow_run_id, "student/loss/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    files = artifacts(tracker, row.mlflow_run_id)
    assert {"spec.json", "checkpoints.json", "log.txt", "pictures"} <= files
    assert artifacts(tracker, row.mlflow_run_id, "pictures") == {"pictures/000010.png"}

    version = tracker.client.get_model_version("whole", "1")
    assert version.tags["job_id"] == job
    assert version.tags["dataset_fingerprint"] == "f" * 64
    assert version.tags["miou"] == "0.5"
    assert version.description.startswith("# tiny student")
    with db.reading(service.engine) as s:
        ours = store.get_model_version(s, "whole", "latest-good")
    assert ours is not None and (ours.version, ours.job_id, ours.miou) == (1, job, 0.5)
    assert {file["path"] for file in ours.files} == {"README.md", "config.json", "model.onnx", "model.safetensors"}

    local = Path(mlflow.artifacts.download_artifacts("models:/whole@latest-good", dst_path=str(tmp_path / "model")))
    names = {path.name for path in local.rglob("*")}
    assert {"model.onnx", "model.safetensors", "config.json", "README.md", "served_model.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]
    assert "cloudpickle" not in (local / "requirements.txt").read_text()

    model = mlflow.pyfunc.load_model(str(local))
    images_NHW3 = np.zeros((2, 5, 7, 3), np.uint8)
    images_NHW3[0, :, :3] = (200, 0, 0)
    images_NHW3[1, 2] = (0, 150, 0)
    masks_NHW = model.predict(images_NHW3)
    assert masks_NHW.shape == (2, 5, 7) and masks_NHW.dtype == np.uint8
    assert (masks_NHW[0, :, :3] == 1).all() and (masks_NHW[0, :, 3:] == 0).all()
    assert (masks_NHW[1, 2] == 2).all()
    with pytest.raises(Exception, match="float32 does not match expected dtype uint8"):
        model.predict(images_NHW3.astype(np.float32))
    student = model.unwrap_python_model()
    masks = student.predict(None, [np.full((4, 6, 3), 255, np.uint8), np.zeros((3, 2, 3), np.uint8)])
    assert [mask_HW.shape for mask_HW in masks] == [(4, 6), (3, 2)]
    for wrong in (images_NHW3.astype(np.float32), images_NHW3[..., :2], images_NHW3[:0]):
        with pytest.raises(ValueError, match="Images must be"):
            student.predict(None, wrong)


def test_a_job_that_only_scores_is_a_run_and_registers_nothing(service: Service, tracker: Tracker) -> None:
    scored = service.submit("steps=1 finish", kind="evaluate", name="scored", student={"weights": "/s.safetensors"})
    service.run(scored)
    assert tracker.round(NEVER)
    row = service.row(scored)
    assert (row.tracking, row.tracking_error, row.model_version) == ("synced", None, None)
    assert tracker.client.get_run(row.mlflow_run_id).data.metrics["student/miou"] == 0.5
    assert tracker.client.search_registered_models("name = 'scored'") == []


def test_a_student_that_is_exported_again_becomes_a_further_version_of_its_name(
    service: Service, tracker: Tracker
) -> None:
    finished(service, "twice")
    tracker.round(NEVER)
    again = finished(service, "twice", kind="export", student={"model": "twice/1"})
    tracker.round(NEVER)
    assert (service.row(again).status, service.row(again).model_version) == (Status.SUCCEEDED, 2)


def test_a_running_job_is_seen_live(service: Service, tracker: Tracker, in_background: Callable[..., object]) -> None:
    job = service.submit("steps=2 hang", name="live")
    in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    tracker.round(NEVER)
    run = tracker.client.get_run(service.row(job).mlflow_run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["student/loss/loss"] == 0.5
    assert "notes.txt" in artifacts(tracker, run.info.run_id)


def test_what_people_ask_of_a_job_is_noted_and_its_labels_follow(
    service: Service, tracker: Tracker, tmp_path: Path, in_background: Callable[..., object]
) -> None:
    job = service.submit("hang", name="asked", labels={"script": "hang", "team": "maps"})
    in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    tracker.round(NEVER)
    with db.begin(service.engine) as s:
        store.set_labels(s, job, {"team": None, "run": "2"})
        store.set_priority(s, job, 5)
    tracker.round(NEVER)
    run = tracker.client.get_run(service.row(job).mlflow_run_id)
    labels = {tag: value for tag, value in run.data.tags.items() if tag.startswith("label.")}
    assert labels == {"label.script": "hang", "label.run": "2"}
    notes = Path(tracker.client.download_artifacts(run.info.run_id, "notes.txt", str(tmp_path))).read_text()
    assert "info: hanging" in notes and "asked: priority 5\n" in notes and "asked: labels {" in notes


@pytest.mark.parametrize(("script", "status"), [("diverge", "FAILED"), ("hang", "KILLED")])
def test_a_job_that_does_not_succeed_closes_its_run_and_registers_nothing(
    service: Service, tracker: Tracker, in_background: Callable[..., object], script: str, status: str
) -> None:
    job = service.submit(script, name="no-success")
    in_background(job)
    if status == "KILLED":
        until(lambda: service.has_noted(job, "hanging"))
        service.cancel(job)
    until(lambda: service.row(job).finished_at)
    tracker.round(NEVER)
    row = service.row(job)
    run = tracker.client.get_run(row.mlflow_run_id)
    assert (run.info.status, run.data.tags["reason"]) == (status, row.reason)
    assert (row.tracking, row.model_version) == ("synced", None)


def test_a_job_cancelled_in_the_queue_has_no_run(service: Service, tracker: Tracker) -> None:
    job = service.submit("finish", name="queued")
    service.cancel(job)
    tracker.round(NEVER)
    row = service.row(job)
    assert (row.tracking, row.mlflow_run_id) == ("synced", None)


def test_mlflow_away_leaves_the_job_alone_and_is_caught_up_later(service: Service, mlflow_server: MlflowServer) -> None:
    job = finished(service, "late")
    away = Tracker(service.settings, CLOSED_PORT)
    assert not away.round(NEVER)
    away.close()
    row = service.row(job)
    assert (row.status, row.tracking) == (Status.SUCCEEDED, "stalled")
    assert row.tracking_error is not None and CLOSED_PORT in row.tracking_error

    back = Tracker(service.settings, mlflow_server.url)
    back.round(NEVER)
    row = service.row(job)
    assert (row.tracking, row.tracking_error, row.model_version) == ("synced", None, 1)
    history = back.client.get_metric_history(row.mlflow_run_id, "student/loss/loss")
    assert [point.step for point in history] == [1, 2, 3]
    back.close()


def test_what_was_sent_before_is_not_there_twice(service: Service, tracker: Tracker) -> None:
    job = finished(service, "again")
    tracker.round(NEVER)
    run_id = service.row(job).mlflow_run_id
    with db.begin(service.engine) as s:  # as after a controller that died before it could write down how far it came
        store.set_tracking(s, job, tracking="pending", tracking_seq=0, mlflow_run_id=None, model_version=None)
    tracker.round(NEVER)
    row = service.row(job)
    assert (row.tracking, row.mlflow_run_id, row.model_version) == ("synced", run_id, 1)
    assert len(tracker.client.get_metric_history(run_id, "student/loss/loss")) == 3
    assert len(tracker.client.search_model_versions("name = 'again'")) == 1


def test_a_student_below_its_floor_is_registered_but_the_alias_does_not_move(
    service: Service, tracker: Tracker
) -> None:
    finished(service, "floor")
    tracker.round(NEVER)
    weak = finished(service, "floor", "steps=1 finish_weak")
    tracker.round(NEVER)
    assert service.row(weak).model_version == 2
    assert tracker.client.get_registered_model("floor").aliases == {"latest-good": "1"}


def test_aliases_that_people_move_are_copied(service: Service, tracker: Tracker) -> None:
    finished(service, "alias")
    tracker.round(NEVER)
    tracker.client.set_registered_model_alias("alias", "champion", "1")
    tracker.client.delete_registered_model_alias("alias", "latest-good")
    tracker._copy_aliases()
    with db.reading(service.engine) as s:
        assert store.model_aliases(s) == {"alias": {"champion": 1}}


def test_one_job_that_mlflow_refuses_does_not_keep_the_others_waiting(service: Service, tracker: Tracker) -> None:
    broken = service.submit("finish", name="broken")
    service.run(broken)  # it has no student folder, so there is nothing to register
    good = finished(service, "not-broken")
    tracker.round(NEVER)
    assert service.row(broken).tracking == "stalled"
    assert "no student" in (service.row(broken).tracking_error or "")
    assert service.row(good).tracking == "synced"


def test_two_controllers_do_not_track_at_once(service: Service, tracker: Tracker, mlflow_server: MlflowServer) -> None:
    other = Tracker(service.settings, mlflow_server.url)
    try:
        tracker.round(NEVER)
        job = finished(service, "two")
        other.round(NEVER)
        assert service.row(job).tracking == "pending"
        tracker.close()
        other.round(NEVER)
        assert service.row(job).tracking == "synced"
    finally:
        other.close()


def test_a_controller_killed_while_it_registers_leaves_one_version(
    service: Service, mlflow_server: MlflowServer
) -> None:
    job = finished(service, "killed-controller")
    tracks = (
        "import sys; from pathlib import Path; from threading import Event; from jobs.settings import Settings\n"
        "from worker.tracking import Tracker\n"
        "print('up', flush=True)\n"
        "Tracker(Settings(home=Path(sys.argv[1])), sys.argv[2]).round(Event())"
    )
    client = mlflow.MlflowClient(mlflow_server.url)
    command = [sys.executable, "-c", tracks, str(service.settings.home), mlflow_server.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: client.search_model_versions("name = 'killed-controller'"), 60)
        process.kill()
    again = Tracker(service.settings, mlflow_server.url)
    again.round(NEVER)
    again.close()
    assert service.row(job).model_version == 1
    assert len(client.search_model_versions("name = 'killed-controller'")) == 1


def gone(service: Service, job: str, *parts: Part) -> None:
    with db.begin(service.engine) as s:
        assert all(store.mark_gone(s, job, part, {}) for part in parts)


def test_what_retention_has_taken_is_really_deleted_in_mlflow_and_the_run_stays(
    service: Service, tracker: Tracker, mlflow_server: MlflowServer
) -> None:
    job = finished(service, "pruned")
    tracker.round(NEVER)
    run_id = service.row(job).mlflow_run_id
    [logged] = tracker.client.search_logged_models([tracker._experiment()], f"tags.job_id = '{job}'")
    tracker.client.delete_registered_model_alias("pruned", "latest-good")
    gone(service, job, Part.RUN, Part.STUDENT)
    tracker.round(NEVER)
    [experiment] = (mlflow_server.folder / "artifacts").glob("*")
    places = [experiment / run_id, experiment / "models" / logged.model_id]
    assert [path for place in places for path in place.rglob("*") if path.is_file()] == []
    assert artifacts(tracker, run_id) == set()
    assert tracker.client.search_model_versions("name = 'pruned'") == []
    assert tracker.client.search_logged_models([tracker._experiment()], f"tags.job_id = '{job}'") == []
    assert tracker.client.get_run(run_id).data.metrics["student/miou"] == 0.5
    assert not (service.folder(job) / "student").exists()
    assert service.row(job).tracking == "synced"


def test_a_student_that_an_alias_has_come_to_stand_for_is_kept_after_all(service: Service, tracker: Tracker) -> None:
    job = finished(service, "rescued")
    tracker.round(NEVER)
    gone(service, job, Part.STUDENT)
    tracker.round(NEVER)
    with db.reading(service.engine) as s:
        model = store.get_model_version(s, "rescued", "latest-good")
    assert model is not None and model.files_gone_at is None
    assert (service.folder(job) / "student" / "model.onnx").exists()


def test_the_run_of_a_job_that_the_database_knows_no_longer_is_closed(service: Service, tracker: Tracker) -> None:
    with db.reading(service.engine) as s:
        tags = {"job_id": "0" * 19, "dsd_installation": store.installation(s)}
    lost = tracker.client.create_run(tracker._experiment(), tags=tags).info.run_id
    foreign = tracker.client.create_run(tracker._experiment(), tags=tags | {"dsd_installation": "x"}).info.run_id
    tracker.round(NEVER)
    assert tracker.client.get_run(lost).info.status == "KILLED"
    assert tracker.client.get_run(foreign).info.status == "RUNNING"


def test_a_student_in_a_bucket_is_registered_from_there(
    service: Service, mlflow_server: MlflowServer, s3: TestBucket, tmp_path: Path
) -> None:
    own = {"database_url": service.settings.db_url, "storage": s3.storage, "home": tmp_path / "host"}
    host = replace(service, settings=service.settings.model_copy(update=own))
    job = host.submit("steps=1 finish", name="from-a-bucket")
    host.run(job)
    write_student(tmp_path / "student")
    for path in (tmp_path / "student").iterdir():
        s3.objects.put(job, f"student/{path.name}", path)
    tracker = Tracker(host.settings, mlflow_server.url)
    tracker.round(NEVER)
    tracker.close()
    row = service.row(job)
    assert (row.tracking, row.tracking_error, row.model_version) == ("synced", None, 1)
    assert {"log.txt", "pictures"} <= artifacts(tracker, str(row.mlflow_run_id))
