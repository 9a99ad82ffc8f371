"""Jobs that cannot run are refused at submission, with the field and what to do; nothing is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dsd_core.data.camvid import CLASSES
from jobs import db, store
from tests.api.conftest import JOBS, Service, problem_in, serving
from tests.builders import save_pair, tiny_camvid
from tests.client.scenes import result

NETWORK = {"name": "espnet"}
IMAGE = np.zeros((48, 64, 3), np.uint8)


def refusal(service: Service, body: dict[str, Any], code: str = "invalid_spec") -> dict[str, Any]:
    """The first wrong field of a job that both doors refuse alike; `message` is all that is said about it."""
    answers = [service.http.post(path, json=body) for path in (JOBS, f"{JOBS}/validate")]
    problems = [problem_in(answer, 422, code) for answer in answers]
    assert problems[0]["errors"] == problems[1]["errors"]
    assert service.http.get(JOBS).json()["data"] == []
    first: dict[str, Any] = problems[0]["errors"][0]
    return {"field": first["field"], "message": f"{first['message']} {first['hint'] or ''}"}


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"epochs": 3}, "/epochs", "no such field"),
        ({"train": {"epoch": 3}}, "/train/epoch", "Did you mean epochs"),
        ({"train": {"epochs": 0}}, "/train/epochs", "greater than or equal to 1"),
        ({"student": {"network": "espent"}}, "/student/network", "espnet"),
        ({"student": {"network": "fpn"}}, "/student/network", "needs an encoder"),
        ({"student": {"network": "fpn:resnet17"}}, "/student/network/encoder", "resnet18"),
        ({"student": {"network": NETWORK | {"options": {"r": 1}}}}, "/student/network/options/r", "takes p"),
        ({"losses": "dsdd"}, "/losses", "dsd"),
        ({"losses": [{"loss": "pds"}]}, "/losses/0/loss", "Did you mean: psd"),
        ({"losses": [{"loss": ["ce"]}]}, "/losses/0/loss", "There is no loss named"),
        ({"losses": [{"los": "ce"}]}, "/losses/0", "say which `loss` it is: ce,"),
        ({"losses": [{"loss": "ce", "weight": "automatic"}]}, "/losses/0/weight", "or `auto`"),
        ({"dataset": {"name": "cityscape"}}, "/dataset/name", "Did you mean cityscapes"),
        ({"dataset": {"name": "camvid"}}, "/dataset", "needs `root`"),
        ({"name": "Not A Slug"}, "/name", "pattern"),
        ({"kind": "distill"}, "/", "needs a `teacher`"),
        ({"webhook": "https://example.org/hook"}, "/webhook", "DSD_WEBHOOK_HOSTS"),
        (
            {"student": {"network": "espnet", "weights": "/nowhere/w.safetensors"}},
            "/student/weights",
            "no weights file",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(
    steady: Service, change: dict[str, Any], field: str, says: str
) -> None:
    codes = {"/student/weights": "invalid_weights"}
    found = refusal(steady, steady.body(**change), codes.get(field, "invalid_spec"))
    assert (found["field"] or "/") == field
    assert says in found["message"]


def test_all_wrong_fields_are_named_at_once(steady: Service) -> None:
    body = steady.body(train={"epochs": 0, "batch": 0}, colour="red")
    problem = problem_in(steady.http.post(JOBS, json=body), 422, "invalid_spec")
    assert {error["field"] for error in problem["errors"]} == {"/train/epochs", "/train/batch", "/colour"}
    assert "3 fields" in problem["detail"]


def test_a_missing_folder_is_named(steady: Service, tmp_path: Path) -> None:
    found = refusal(steady, on(steady, tmp_path / "nowhere"), "invalid_data")
    assert found["field"] == "/dataset/root"
    assert str(tmp_path / "nowhere") in found["message"]


@pytest.mark.parametrize(
    ("root", "code"),
    [
        ("data/CamVid", "invalid_spec"),
        ("/" + "a" * 900, "invalid_spec"),
        ("/\u202e", "invalid_data"),
        ("/dev/null", "invalid_data"),
        ("/proc/self/mem", "invalid_data"),
    ],
)
def test_a_root_that_can_be_no_dataset_is_refused(steady: Service, root: str, code: str) -> None:
    assert refusal(steady, steady.body(dataset={"name": "camvid", "root": root}), code)["field"] == "/dataset/root"


def test_a_mask_with_an_id_out_of_range_is_named_with_the_id(steady: Service, tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path / "camvid")
    save_pair(root, "train", "train_001.png", IMAGE, np.full((48, 64), 200, np.uint8))
    found = refusal(steady, on(steady, root), "invalid_data")
    assert "train_001.png" in found["message"] and "200" in found["message"]


def test_a_truncated_image_is_named(steady: Service, tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path / "camvid")
    image = root / "train" / "train_002.png"
    image.write_bytes(image.read_bytes()[:200])
    assert "train_002.png" in refusal(steady, on(steady, root), "invalid_data")["message"]


def test_a_teacher_with_other_classes_is_refused(steady: Service, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file({"segmentation_head.0.weight": np.zeros((19, 8, 1, 1), np.float32)}, weights)
    body = on(steady, steady.data, **taught_by(weights))
    found = refusal(steady, body)
    assert found["field"] == "/teacher/weights"
    assert "19 classes" in found["message"] and "11" in found["message"]


def test_a_teacher_of_another_network_is_refused(steady: Service, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file({"layer.weight": np.zeros((4, 4), np.float32)}, weights)
    found = refusal(steady, on(steady, steady.data, **taught_by(weights)), "invalid_weights")
    assert found["field"] == "/teacher/weights"


def test_weights_that_are_no_safetensors_are_refused(steady: Service, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"\x80\x02}q\x00.")
    found = refusal(steady, on(steady, steady.data, **taught_by(weights)), "invalid_weights")
    assert "safetensors" in found["message"]


def test_paths_outside_the_allowed_folders_are_refused(tmp_path: Path, small_camvid: Path, sqlite_url: str) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(small_camvid)
    with serving(tmp_path, small_camvid, sqlite_url, data_roots=str(allowed)) as service:
        for path in (small_camvid, allowed / ".." / ".." / small_camvid.name, allowed / "link"):
            found = refusal(service, on(service, path))
            assert found["field"] == "/dataset/root" and "outside" in found["message"]


def test_an_unknown_registered_teacher_is_refused_with_the_known_names(service: Service) -> None:
    claim = service.succeed()
    register(service, claim.job_id)
    body = service.body(kind="distill", teacher={"model": "a-studant"})
    problem = problem_in(service.http.post(JOBS, json=body), 422, "invalid_spec")
    assert problem["errors"][0]["field"] == "/teacher/model"
    assert "a-student" in problem["hint"]


@pytest.mark.parametrize("version", ["@champion", "/7", "/99999999999999999999"])
def test_an_unknown_version_of_a_teacher_is_refused_with_those_there_are(service: Service, version: str) -> None:
    register(service, service.succeed().job_id)
    body = service.body(kind="distill", teacher={"model": f"a-student{version}"})
    problem = problem_in(service.http.post(JOBS, json=body), 422, "invalid_spec")
    assert problem["errors"][0]["field"] == "/teacher/model"
    assert "latest-good, 1" in problem["hint"]


def test_a_text_that_is_no_model_is_refused(steady: Service) -> None:
    body = steady.body(kind="distill", teacher={"model": "../../etc/passwd"})
    assert refusal(steady, body)["field"] == "/teacher/model"


def test_a_registered_teacher_with_other_classes_is_refused(service: Service) -> None:
    register(service, service.succeed().job_id)  # its result knows one class
    body = service.body(kind="distill", teacher={"model": "a-student"})
    problem = problem_in(service.http.post(JOBS, json=body), 422, "invalid_spec")
    assert problem["errors"][0]["field"] == "/teacher/model"
    assert "1 classes" in problem["detail"]


def test_a_registered_teacher_is_accepted(service: Service) -> None:
    claim = service.run()
    service.finish(claim, result=result(classes=list(CLASSES)))
    register(service, claim.job_id)
    assert service.submit(kind="distill", teacher={"model": "a-student@latest-good"})["status"] == "queued"


def on(service: Service, root: Path, **fields: Any) -> dict[str, Any]:
    return service.body(dataset={"name": "camvid", "root": str(root)}, **fields)


def taught_by(weights: Path) -> dict[str, Any]:
    return {
        "kind": "distill",
        "teacher": {"weights": str(weights), "network": "fpn:resnet18", "preprocess": {}},
    }


def register(service: Service, job_id: str) -> None:
    with db.begin(service.engine) as s:
        store.add_model_version(s, name="a-student", version=1, job_id=job_id, files=[], tags={})
        store.set_aliases(s, "a-student", {"latest-good": 1})
