"""What the demo submits, and what it does when a job does not succeed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from client import demo
from client.http import Client
from dsd_core.spec import parse_spec
from tests.client.conftest import Wire, says, sends

JOB = {"id": "job_1", "name": "streets-teacher", "status": "queued"}


def test_without_data_a_teacher_is_trained_on_streets_and_teaches_a_student_with_a_baseline() -> None:
    teacher = parse_spec(demo.job("streets-teacher"))
    student = parse_spec(demo.job("streets-student", taught_by={"model": "streets-teacher/3"}))
    assert (teacher.kind, teacher.dataset.name) == ("train", "streets")
    assert student.teacher is not None and student.teacher.model == "streets-teacher/3"
    assert student.baseline
    assert student.dataset == teacher.dataset


def test_with_data_and_a_teacher_file_both_are_in_the_job(tmp_path: Path) -> None:
    student = parse_spec(demo.job("camvid-student", tmp_path, {"weights": "/weights/t.safetensors"}))
    assert student.dataset.root == str(tmp_path.resolve())
    assert student.dataset.size == (240, 320)
    assert student.teacher is not None
    assert (student.teacher.weights, student.teacher.model) == ("/weights/t.safetensors", None)


def test_a_job_that_fails_ends_the_demo_with_its_error(wire: Wire) -> None:
    wire.on("/api/v1/jobs", says(JOB, 202))
    wire.on("/api/v1/jobs/job_1/events", sends(b"event: end\ndata: {}\n\n"))
    error = {"code": "invalid_data", "message": "no such folder", "hint": "Check it.", "field": "/dataset/root"}
    wire.on("/api/v1/jobs/job_1", says(JOB | {"status": "failed", "error": error}))
    out = io.StringIO()
    with Client(wire.url) as client, pytest.raises(demo.JobFailed, match="job_1"):
        demo.finish(client, demo.job("streets-teacher"), Console(file=out, width=120))
    assert "no such folder" in out.getvalue() and "Check it." in out.getvalue()


def test_the_demo_waits_until_the_model_is_registered(wire: Wire) -> None:
    wire.on("/api/v1/jobs", says(JOB, 202))
    wire.on("/api/v1/jobs/job_1/events", sends(b"event: end\ndata: {}\n\n"))
    done = JOB | {"status": "succeeded"}
    model = {"name": "streets-teacher", "tracking_error": None}
    wire.on("/api/v1/jobs/job_1", *[says(done | {"model": model | {"version": v}}) for v in (None, None, 4)])
    out = io.StringIO()
    with Client(wire.url) as client:
        job = demo.finish(client, demo.job("streets-teacher"), Console(file=out, width=120))
    assert job["model"]["version"] == 4
    assert "streets-teacher/4" in out.getvalue()
