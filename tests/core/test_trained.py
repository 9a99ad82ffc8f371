"""Jobs on a student that was trained: the score is its own, and the files that are written are it."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dsd_core.data import open_dataset
from dsd_core.data.loader import eval_batches
from dsd_core.errors import DataError, DsdError, Interrupted, SpecError, WeightsError
from dsd_core.evaluate import evaluate
from dsd_core.events import Event, Result
from dsd_core.export import check_parity
from dsd_core.inference import predictor as looking
from dsd_core.models.onnx_graph import write_onnx
from dsd_core.models.onnx_half import halve_weights
from dsd_core.models.onnx_session import onnx_session
from dsd_core.spec import JobSpec, parse_spec
from dsd_core.teacher import load_student
from dsd_core.trained import evaluate_student, export_again
from tests.core import layouts
from tests.core.small import CLASSES, save_teacher

FILE = "model.safetensors"
DATASET = {"name": "streets", "size": [32, 48]}


def job(kind: str, student: dict[str, Any], **changes: Any) -> JobSpec:
    fields = {"kind": kind, "name": "again", "dataset": DATASET, "student": student, "train": {"threads": 1}}
    return parse_spec(fields | changes)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_teacher(tmp_path)


def test_a_student_is_scored_as_the_options_say_and_nothing_is_written(weights: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    options = {"flip": True, "scales": [0.5, 1.0], "boundary": False, "floor": 0.9}
    spec = job("evaluate", {"weights": str(weights)}, evaluate=options)
    result = evaluate_student(spec, tmp_path, events.append)
    val = open_dataset("streets", None, "val", (32, 48))
    segmenter, *_ = load_student(spec.student, CLASSES)
    plain, seen = (
        evaluate(looks, eval_batches(val, 4), CLASSES)[0] for looks in (segmenter, looking(segmenter, spec.evaluate))
    )
    assert result.student == seen != plain
    assert [event.type for event in events] == ["started", "evaluated"]
    assert (result.files, result.onnx_max_error, result.train_seconds, result.beats_floor) == ([], None, 0.0, False)
    assert (result.spec_digest, result.dataset_fingerprint) == (spec.digest(), val.fingerprint())
    assert Result.model_validate_json((tmp_path / "result.json").read_text()) == result
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_an_export_is_the_student_at_the_size_it_was_asked_for_and_is_scored_alike(
    weights: Path, tmp_path: Path
) -> None:
    changes = {"dataset": DATASET | {"size": [48, 80]}, "export": {"precision": "float16"}}
    spec = job("export", {"weights": str(weights)}, **changes)
    result = export_again(spec, tmp_path, lambda event: None)
    folder = tmp_path / "student"
    before, after = load_file(weights), load_file(folder / FILE)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    config = json.loads((folder / "config.json").read_text())
    assert (config["size"], config["classes"]) == ([48, 80], list(CLASSES))
    assert config["onnx"]["precision"] == "float16"
    assert config["student_digest"] == result.student_digest
    assert config["scores"]["student"]["miou"] == result.student.miou
    image_NHW3 = np.random.default_rng(1).integers(0, 256, (1, 48, 80, 3), dtype=np.uint8)
    logits = onnx_session(folder / "model.onnx").run(["logits"], {"image": image_NHW3})[0]
    segmenter, *_ = load_student(spec.student, CLASSES)
    with torch.inference_mode():
        expected = segmenter(torch.from_numpy(image_NHW3).permute(0, 3, 1, 2))
    assert np.allclose(logits, expected.numpy(), atol=1e-3)
    scored = evaluate_student(spec.model_copy(update={"kind": "evaluate"}), tmp_path, print, weights=folder / FILE)
    assert scored.student == result.student
    assert {file.path for file in result.files} >= {"model.onnx", "model.safetensors", "README.md", "SHA256SUMS"}


def test_half_precision_halves_a_graph_and_is_refused_where_it_makes_another_network(
    weights: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "model.onnx"
    segmenter, *_ = load_student(job("export", {"weights": str(weights)}).student, CLASSES)
    write_onnx(segmenter, graph)
    bytes_before, (error_before, _) = graph.stat().st_size, check_parity(segmenter, graph, (32, 48), limit=1e-3)
    halve_weights(graph)
    error, _ = check_parity(segmenter, graph, (32, 48), limit=1e-3)
    assert graph.stat().st_size < 0.75 * bytes_before and error > error_before
    with pytest.raises(DsdError, match="differs from the network") as caught:
        check_parity(segmenter, graph, (32, 48), limit=error / 10)
    assert "try float32" in str(caught.value.hint)


def test_an_export_without_labels_has_no_score_and_says_so(tmp_path: Path) -> None:
    weights = save_teacher(tmp_path, classes=3)
    root = layouts.folder(tmp_path / "data", val=["a", "b"])
    shutil.rmtree(root / "masks")
    data = {"dataset": {"name": "folder", "root": str(root), "size": [32, 48]}}
    events: list[Event] = []
    result = export_again(job("export", {"weights": str(weights)}, **data), tmp_path, events.append)
    assert result.student.miou is None and not result.beats_floor
    assert "no labels" in next(event.message for event in events if event.type == "note")
    with pytest.raises(DataError, match="nothing to score") as caught:
        evaluate_student(job("evaluate", {"weights": str(weights)}, **data), tmp_path, lambda event: None)
    assert caught.value.field == "/dataset"


@pytest.mark.parametrize(("asked", "while_"), [(0, "the data was read, 1 images"), (61, "the student was scored")])
def test_a_job_on_a_trained_student_stops_between_two_images_or_batches(
    asked: int, while_: str, weights: Path, tmp_path: Path
) -> None:
    calls = count()
    with pytest.raises(Interrupted, match=f"Stopped while {while_}"):
        evaluate_student(job("evaluate", {"weights": str(weights)}), tmp_path, print, stop=lambda: next(calls) >= asked)
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "pulse").read_text().strip().isdigit()


@pytest.mark.parametrize(
    ("student", "error", "field", "says"),
    [
        ({"model": "m/3"}, SpecError, "/student/model", "The registered model 'm/3' was not fetched"),
        ({"job": "b2"}, SpecError, "/student/job", "The student of job 'b2' was not fetched"),
        ({"weights": "/nowhere/s.safetensors"}, WeightsError, "/student/weights", "There is no weights file"),
        ({"weights": "FILE", "network": "enet"}, WeightsError, "/student/weights", "enet"),
    ],
)
def test_a_student_that_cannot_be_loaded_names_its_field(
    student: dict[str, Any], error: type, field: str, says: str, weights: Path, tmp_path: Path
) -> None:
    named = {key: str(weights) if value == "FILE" else value for key, value in student.items()}
    with pytest.raises(error, match=says) as caught:
        evaluate_student(job("evaluate", named), tmp_path, lambda event: None)
    assert caught.value.field == field
