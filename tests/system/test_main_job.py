"""The main job on the whole service: supervisor, Valkey, API, controller, Celery, MLflow, training and download.

The networks and images are the smallest there are; everything else is what `make demo` runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from client.home import running
from client.http import ApiError, Client
from tests.client.supervised import until
from tests.core.small import small_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`dsd up` with MLflow; its address, home and client."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}
    process = subprocess.Popen([sys.executable, "-m", "deploy.up", "--home", str(home)], env=environment)
    try:
        address = until(lambda: running(home))
        with Client(address["api_url"]) as client:
            until(client.ready)
            yield {**address, "home": home, "client": client}
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def distilled(service: dict[str, Any]) -> dict[str, Any]:
    """A teacher trained by a job, and the job that distilled a student from it by its registered name."""
    client = service["client"]
    teacher = finish(client, small_spec(None, name="small-teacher").model_dump(mode="json"))
    assert teacher["status"] == "succeeded", teacher["error"]
    spec = small_spec(None, name="small-student").model_dump(mode="json")
    spec |= {"kind": "distill", "losses": "dsd_kd", "baseline": True}
    spec["teacher"] = {"model": "small-teacher", "floor": 0.0}
    return finish(client, spec)


def finish(client: Client, spec: dict[str, Any]) -> dict[str, Any]:
    """Submit a job and follow its events to its end, and its model into the registry."""
    job = client.submit(spec)
    for _ in client.events(job["id"]):
        pass
    deadline = time.monotonic() + 180
    while True:
        job = client.job(job["id"])
        settled = job["status"] in ENDED and (job["status"] != "succeeded" or job["model"]["version"])
        if settled or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def test_a_student_is_distilled_from_a_registered_teacher_and_registered(distilled: dict[str, Any]) -> None:
    assert distilled["status"] == "succeeded", distilled["error"]
    result = distilled["result"]
    assert result["gain"] == pytest.approx(result["student"]["miou"] - result["baseline"]["miou"])
    assert result["teacher"]["miou"] is not None and result["teacher_digest"]
    assert distilled["model"]["version"] == 1
    assert distilled["spec"]["teacher"]["model"] == "small-teacher/1", "an alias is pinned when the job is submitted"


def test_the_downloaded_student_runs_on_images_alone(
    service: dict[str, Any], distilled: dict[str, Any], tmp_path: Path
) -> None:
    for file in distilled["result"]["files"]:
        service["client"].download("small-student", "latest-good", file["path"], tmp_path / file["path"])
        assert (tmp_path / file["path"]).stat().st_size == file["bytes"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    logits = session.run(["logits"], {"image": np.zeros((1, 32, 48, 3), dtype=np.uint8)})[0]
    assert logits.shape == (1, len(distilled["result"]["classes"]), 32, 48)


def test_mlflow_holds_the_run_with_its_numbers_pictures_spec_and_log(
    service: dict[str, Any], distilled: dict[str, Any]
) -> None:
    from worker import tracking  # sets mlflow's time limits and warnings before it is imported

    mlflow = tracking.mlflow.MlflowClient(service["mlflow_url"])
    run = mlflow.get_run(distilled["mlflow"]["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["job_id"] == distilled["id"]
    assert run.data.params["losses.psd.weight"] == "3.0"
    metrics = run.data.metrics
    for name in ("student/loss/psd", "student/grad_norm/csd", "student/learning_rate", "student/images_per_s"):
        assert name in metrics
    for name in ("teacher/miou", "baseline/miou", "student/miou", "student/iou/road"):
        assert name in metrics
    assert any(name.startswith("system/") for name in metrics)
    assert metrics["student/miou"] == pytest.approx(distilled["result"]["student"]["miou"])
    artifacts = {item.path for item in mlflow.list_artifacts(run.info.run_id)}
    assert {"spec.json", "checkpoints.json", "log.txt", "pictures"} <= artifacts
    version = mlflow.get_model_version_by_alias("small-student", "latest-good")
    assert version.version == "1" and version.tags["teacher_digest"] and version.tags["spec_digest"]


def test_the_registered_model_loads_with_pyfunc_and_gives_masks_and_holds_no_pickle(
    service: dict[str, Any], distilled: dict[str, Any]
) -> None:
    from worker import tracking

    tracking.mlflow.set_tracking_uri(service["mlflow_url"])
    model = tracking.mlflow.pyfunc.load_model("models:/small-student@latest-good")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    masks = model.predict(images)
    assert masks.shape == (2, 32, 48) and masks.dtype == np.uint8
    assert masks.max() < len(distilled["result"]["classes"])
    stored = [
        path for path in (service["home"]).rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".ckpt")
    ]
    assert stored == []


def test_a_job_that_cannot_work_fails_with_a_reason_and_the_worker_lives_on(service: dict[str, Any]) -> None:
    client = service["client"]
    spec = small_spec(None, name="bad-taps").model_dump(mode="json")
    spec |= {"kind": "distill", "losses": "dsd"}
    spec["teacher"] = {"model": "small-teacher", "floor": 0.0, "taps": ["encoder.level1", "encoder.levl9"]}
    failed = finish(client, spec)
    assert failed["status"] == "failed" and failed["error"]["code"] == "invalid_spec"
    assert failed["error"]["field"] == "/teacher/taps" and "encoder.level" in failed["error"]["hint"]
    diverging = small_spec(None, name="diverging", train__learning_rate=100.0).model_dump(mode="json")
    diverging["train"] |= {"optimizer": "sgd", "clip_norm": None, "epochs": 4}
    diverged = finish(client, diverging)
    assert (diverged["status"], diverged["reason"]) == ("failed", "diverged")
    assert finish(client, small_spec(None, name="after").model_dump(mode="json"))["status"] == "succeeded"


def test_a_running_job_is_cancelled(service: dict[str, Any]) -> None:
    client = service["client"]
    job = client.submit(small_spec(None, name="long", train__epochs=5000).model_dump(mode="json"))
    for event in client.events(job["id"]):
        if event["type"] == "progress":
            client.cancel(job["id"])
            break
    for _ in client.events(job["id"]):
        pass
    assert client.job(job["id"])["status"] == "cancelled"
    with pytest.raises(ApiError) as caught:
        client.cancel(job["id"])
    assert "cancelled" in json.dumps(caught.value.as_dict())
