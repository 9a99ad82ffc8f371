"""Jobs that name other jobs and registered models: they exist, may still succeed, and fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsd_core.data.camvid import CLASSES
from jobs import db, store
from jobs.status import Reason
from tests.api.conftest import JOBS, Service, problem_in
from tests.client.scenes import result


def refused(service: Service, **fields: Any) -> tuple[str, str]:
    """The wrong field of a job that both doors refuse alike, and all that is said about it."""
    answers = [service.http.post(path, json=service.body(**fields)) for path in (JOBS, f"{JOBS}/validate")]
    submitted, validated = (problem_in(answer, 422, "invalid_spec")["errors"] for answer in answers)
    assert submitted == validated and len(submitted) == 1
    return submitted[0]["field"], f"{submitted[0]['message']} {submitted[0]['hint'] or ''}"


def taught_by(job_id: str, **teacher: Any) -> dict[str, Any]:
    return {"kind": "distill", "teacher": {"job": job_id, **teacher}}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"needs": ["nosuchjob"]}, "/needs/0"),
        (taught_by("nosuchjob"), "/teacher/job"),
        ({"kind": "evaluate", "student": {"job": "nosuchjob"}}, "/student/job"),
    ],
)
def test_a_job_that_does_not_exist_is_not_waited_for(service: Service, fields: dict[str, Any], field: str) -> None:
    where, said = refused(service, **fields)
    assert where == field
    assert "There is no job 'nosuchjob'" in said and "`dsd jobs` lists" in said


def test_a_job_that_has_failed_or_is_cancelled_is_not_waited_for(service: Service) -> None:
    good, failed, cancelled, cancelling = service.submit()["id"], service.run(), service.submit()["id"], service.run()
    service.finish(failed, Reason.DIVERGED)
    for job_id in (cancelled, cancelling.job_id):
        service.http.post(f"{JOBS}/{job_id}/cancel")
    for job_id, why in ((failed.job_id, "has failed"), (cancelled, "was cancelled"), (cancelling.job_id, "is being")):
        where, said = refused(service, needs=[good, job_id])
        assert where == "/needs/1" and why in said and "submit it again" in said


def test_a_queued_job_may_teach_and_be_scored(service: Service) -> None:
    teacher = service.submit(name="teacher")["id"]
    student = service.submit(**taught_by(teacher))
    assert student["spec"]["teacher"]["job"] == teacher
    scored = service.submit(kind="evaluate", student={"job": student["id"]}, needs=[teacher])
    assert (scored["status"], scored["spec"]["losses"]) == ("queued", [])
    listed = service.http.get(JOBS, params={"kind": "evaluate"}).json()["data"]
    assert [job["id"] for job in listed] == [scored["id"]]


def test_a_teacher_that_is_still_to_be_trained_is_held_against_its_own_dataset(service: Service) -> None:
    teacher = service.submit(name="teacher", dataset={"name": "streets"})["id"]
    where, said = refused(service, **taught_by(teacher))
    assert where == "/teacher/job"
    assert f"the student of job {teacher} (teacher)" in said and "has the 11 classes" in said


def test_a_teacher_whose_dataset_cannot_be_read_from_here_is_left_to_the_run(service: Service, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(service.data)
    teacher = service.submit(name="teacher", dataset={"name": "camvid", "root": str(elsewhere)})["id"]
    elsewhere.unlink()
    assert service.submit(**taught_by(teacher))["status"] == "queued"


def test_a_finished_teacher_is_held_against_its_result(service: Service) -> None:
    claim = service.succeed()  # its result knows one class
    assert refused(service, **taught_by(claim.job_id))[0] == "/teacher/job"


def test_a_network_that_the_other_job_does_not_train_is_refused(service: Service) -> None:
    teacher = service.submit(student={"network": "fpn:resnet18"})["id"]
    where, said = refused(service, **taught_by(teacher, network="espnet"))
    assert where == "/teacher/network"
    assert "is fpn:resnet18, not espnet" in said and "Leave it out" in said
    assert service.submit(**taught_by(teacher, network="fpn:resnet18"))["status"] == "queued"


def test_pixels_other_than_those_a_teacher_is_trained_with_are_warned_of(service: Service) -> None:
    teacher = service.submit(name="teacher")["id"]
    body = service.body(**taught_by(teacher, preprocess={"order": "BGR"}))
    findings = service.http.post(f"{JOBS}/validate", json=body).json()["findings"]
    (warning,) = (finding for finding in findings if finding["field"] == "/teacher/preprocess")
    assert warning["level"] == "warning" and "was trained with order RGB" in warning["message"]


def test_a_job_that_leaves_no_student_cannot_teach(service: Service) -> None:
    scored = service.submit(kind="evaluate", student={"job": service.submit()["id"]})["id"]
    where, said = refused(service, **taught_by(scored))
    assert where == "/teacher/job" and "leaves no student" in said


def test_a_student_to_be_exported_is_pinned_to_its_version(service: Service) -> None:
    claim = service.run()
    service.finish(claim, result=result(classes=list(CLASSES)))
    with db.begin(service.engine) as s:
        store.add_model_version(s, name="a-student", version=1, job_id=claim.job_id, files=[], tags={})
        store.set_aliases(s, "a-student", {"latest-good": 1})
    job = service.submit(kind="export", student={"model": "a-student"})
    assert job["spec"]["student"]["model"] == "a-student/1"
    where, said = refused(service, kind="export", student={"model": "a-student/2"})
    assert where == "/student/model" and "It has latest-good, 1" in said
    assert refused(service, kind="export", student={"model": "../x"})[0] == "/student/model"


def test_what_scoring_will_take_is_not_made_up(service: Service) -> None:
    body = service.body(kind="evaluate", student={"job": service.submit()["id"]})
    estimates = service.http.post(f"{JOBS}/validate", json=body).json()["estimates"]
    assert (estimates["duration_s"], estimates["val_images"], estimates["steps"]) == (None, 3, 0)
    assert "not estimated" in estimates["basis"]
