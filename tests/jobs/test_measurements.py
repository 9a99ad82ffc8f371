"""What MLflow is told of an event and of a spec."""

from __future__ import annotations

import json
import re

from dsd_core.events import Evaluated
from dsd_core.spec import parse_spec
from jobs.measurements import measurements, params_of
from tests.worker.scripted_child import SCORE, progress

SPEC = {
    "kind": "distill",
    "name": "a",
    "dataset": {"name": "streets"},
    "teacher": {"weights": "/teacher.safetensors"},
    "student": {"network": {"name": "espnet", "options": {"p (stage two)": 2}}},
}


def test_progress_becomes_metrics_under_its_phase_and_system_metrics_under_theirs() -> None:
    found = {m.name: m.value for m in measurements("progress", json.loads(progress(4).model_dump_json()))}
    assert found == {
        "student/loss/loss": 0.25,
        "student/loss/psd": 0.25,
        "student/grad_norm/psd": 2.0,
        "student/learning_rate": 0.1,
        "student/images_per_s": 7.0,
        "student/epoch": 0.0,
        "system/cpu_utilization_percentage": 50.0,
    }


def test_scores_become_metrics_with_names_mlflow_takes_and_absent_classes_are_left_out() -> None:
    event = Evaluated(subject="teacher", step=3, total_step=9, images=2, seconds=0.1, **SCORE.model_dump())
    found = measurements("evaluated", json.loads(event.model_dump_json()))
    assert {(m.name, m.value) for m in found} == {
        ("teacher/miou", 0.5),
        ("teacher/pixel_accuracy", 0.75),
        ("teacher/iou/road _0_", 0.5),
    }
    assert {m.step for m in found} == {9}


def test_a_further_seed_has_names_of_its_own_and_the_first_keeps_the_plain_ones() -> None:
    event = Evaluated(subject="student", seed=1, step=3, total_step=9, images=2, seconds=0.1, **SCORE.model_dump())
    names = {m.name for m in measurements("evaluated", json.loads(event.model_dump_json()))}
    assert names == {"student/seed-1/miou", "student/seed-1/pixel_accuracy", "student/seed-1/iou/road _0_"}
    again = json.loads(progress(4).model_dump_json()) | {"seed": 1}
    assert {m.name.split("/loss")[0] for m in measurements("progress", again) if "loss" in m.name} == {"student/seed-1"}


def test_accuracies_and_boundaries_of_classes_are_metrics_too() -> None:
    figures = {
        "class_accuracy": 0.6,
        "per_class_accuracy": {"sky": 0.6},
        "boundary_iou": 0.3,
        "per_class_boundary_iou": {"sky": 0.3, "road (0)": None},
    }
    score = SCORE.model_dump() | figures
    event = Evaluated(subject="student", step=3, total_step=9, images=2, seconds=0.1, **score)
    found = {m.name: m.value for m in measurements("evaluated", json.loads(event.model_dump_json()))}
    assert found["student/class_accuracy"] == found["student/accuracy/sky"] == 0.6
    assert found["student/boundary_iou"] == found["student/boundary/sky"] == 0.3
    assert len(found) == 7


def test_events_of_older_versions_have_the_metrics_they_had() -> None:
    old = {"subject": "student", "total_step": 9, "miou": 0.5, "pixel_accuracy": 0.75, "per_class_iou": {"sky": 0.4}}
    assert {m.name for m in measurements("evaluated", old)} == {
        "student/miou",
        "student/pixel_accuracy",
        "student/iou/sky",
    }


def test_events_without_numbers_have_no_metrics() -> None:
    assert measurements("status", {"from": None, "to": "queued"}) == []


def test_every_field_of_a_spec_is_a_parameter_of_its_path() -> None:
    params = params_of(parse_spec({**SPEC, "losses": "dsd"}).model_dump(mode="json"))
    assert params["train.augment.scale"] == "[0.75, 1.75]"
    assert params["losses.psd.weight"] == "1.0"
    assert params["teacher.weights"] == "/teacher.safetensors"
    assert params["student.network.options.p _stage two_"] == "2"
    assert params["labels"] == "{}"
    assert all(re.fullmatch(r"[\w\-./: ]+", name) for name in params)


def test_long_values_are_cut() -> None:
    spec = parse_spec({**SPEC, "teacher": {"weights": "/" + "x" * 900}}).model_dump(mode="json")
    assert len(params_of(spec)["teacher.weights"]) == 500
