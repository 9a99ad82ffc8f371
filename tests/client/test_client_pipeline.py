"""A file of several jobs becomes jobs that name each other by id, each once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client import job_file
from client.cli import app
from client.errors import ApiError, ServiceAway
from client.http import Client
from client.pipeline import stand_alone, submit_all
from client.submission import submission_key
from dsd_core.errors import SpecError
from tests.client.conftest import Wire, breaks, says, sends

JOBS = "/api/v1/jobs"
FIELDS: dict[str, Any] = {"kind": "train", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
TEACHER = FIELDS | {"name": "teacher"}
STUDENT = FIELDS | {"name": "student", "kind": "distill", "teacher": {"job": "teacher", "floor": 0.1}}
SCORE = {"kind": "evaluate", "name": "score", "dataset": {"name": "streets"}, "student": {"job": "student"}}
EXPORT = SCORE | {"kind": "export", "name": "student", "needs": ["teacher", "score", "older1"]}
FOUR = [TEACHER, STUDENT, SCORE, EXPORT]


def queued(job_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": job_id, "name": "a", "status": "queued"} | fields


def sent(wire: Wire) -> list[tuple[str, dict[str, Any]]]:
    """Key and body of each submission."""
    posts = [request for request in wire.requests if request[:2] == ("POST", JOBS)]
    return [(headers["idempotency-key"], json.loads(body)) for _, _, headers, body in posts]


def dsd(wire: Wire, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"DSD_URL": wire.url, "COLUMNS": "120"})


def a_file(folder: Path, *jobs: dict[str, Any]) -> str:
    path = folder / "jobs.yaml"
    path.write_text("\n---\n".join(json.dumps(job) for job in jobs) + "\n---\n")
    return str(path)


def test_names_of_earlier_jobs_become_their_ids(wire: Wire) -> None:
    wire.on(JOBS, *(says(queued(job_id), 202) for job_id in ("t1", "s2", "e3", "x4")))
    with Client(wire.url) as client:
        assert [job["id"] for job in submit_all(client, FOUR)] == ["t1", "s2", "e3", "x4"]
    teacher, student, score, export = (body for _, body in sent(wire))
    assert teacher == TEACHER
    assert student == STUDENT | {"teacher": {"job": "t1", "floor": 0.1}}
    assert score["student"] == export["student"] == {"job": "s2"}
    assert export["needs"] == ["t1", "e3", "older1"]


def test_after_a_broken_connection_the_same_jobs_are_asked_for_once_more_with_the_same_keys(wire: Wire) -> None:
    wire.on(JOBS, says(queued("t1"), 202), *[breaks] * 4, says(queued("t1"), 202), says(queued("s2"), 202))
    with Client(wire.url) as client, pytest.raises(ServiceAway):
        submit_all(client, FOUR[:2])
    with Client(wire.url) as client:
        submit_all(client, FOUR[:2])
    keys = [key for key, _ in sent(wire)]
    assert keys[0] == keys[5] and len(set(keys[1:5])) == 1 and keys[1] == keys[6] != keys[0]


def test_once_all_jobs_are_queued_the_same_file_makes_new_ones(wire: Wire) -> None:
    wire.on(JOBS, says(queued("t1"), 202))
    with Client(wire.url) as client:
        submit_all(client, [TEACHER])
        submit_all(client, [TEACHER])
    (first, _), (second, _) = sent(wire)
    assert first != second


def unanswered(url: str, jobs: list[dict[str, Any]]) -> str:
    """The key of a submission that is broken off."""
    with pytest.raises(KeyboardInterrupt), submission_key(url, jobs) as key:
        raise KeyboardInterrupt
    return key


def test_a_key_is_for_these_jobs_at_this_service_and_for_a_day(client_home: Path) -> None:
    first = unanswered("http://a", [TEACHER])
    assert unanswered("http://a", [TEACHER]) == first
    assert len({first, unanswered("http://b", [TEACHER]), unanswered("http://a", FOUR)}) == 3
    for kept in (client_home / "submissions").iterdir():
        os.utime(kept, (0, 0))
    assert unanswered("http://a", [TEACHER]) != first


def test_where_no_key_can_be_kept_a_job_is_submitted_all_the_same(wire: Wire, client_home: Path) -> None:
    client_home.parent.mkdir(parents=True, exist_ok=True)
    client_home.write_text("a file where the folder should be")
    wire.on(JOBS, says(queued("t1"), 202))
    with Client(wire.url) as client:
        assert submit_all(client, [TEACHER])[0]["id"] == "t1"


def test_where_one_job_is_refused_those_before_it_are_cancelled_and_the_next_try_starts_anew(wire: Wire) -> None:
    problem = {"detail": "The teacher knows other classes.", "errors": [{"field": "/teacher/job", "message": "so"}]}
    wire.on(JOBS, says(queued("t1"), 202), says(problem, 422))
    wire.on(f"{JOBS}/t1/cancel", says(queued("t1", status="cancelled"), 202))
    for _ in range(2):
        with Client(wire.url) as client, pytest.raises(ApiError) as caught:
            submit_all(client, FOUR[:2])
        wire.on(JOBS, says(queued("t1"), 202), says(problem, 422))
    assert caught.value.message.startswith("Job student (2 of 2 in the file): The teacher knows other classes.")
    assert "Cancelled with it: teacher." in caught.value.message and caught.value.field == "/teacher/job"
    assert [path for _, path, *_ in wire.requests].count(f"{JOBS}/t1/cancel") == 2
    assert sent(wire)[0][0] != sent(wire)[2][0]


@pytest.mark.parametrize(
    ("jobs", "field", "says"),
    [
        ([STUDENT, TEACHER], "/teacher/job", "'teacher' does not come before it"),
        ([TEACHER | {"needs": ["teacher"]}], "/needs/0", "'teacher' does not come before it"),
        ([TEACHER, TEACHER, STUDENT], "/teacher/job", "any of 2 jobs before it"),
    ],
)
def test_a_name_that_is_not_one_job_before_is_refused(jobs: list[dict[str, Any]], field: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        stand_alone(jobs)
    assert caught.value.field == field


def test_all_jobs_of_a_file_are_queued_and_printed(wire: Wire, tmp_path: Path) -> None:
    answers = [says(queued(job_id, name=job_id.upper()), 202) for job_id in ("t1", "s2")]
    wire.on(JOBS, *answers)
    told = dsd(wire, "submit", a_file(tmp_path, *FOUR[:2]), "--set", "student:train.epochs=3", "--set", "priority=5")
    assert told.exit_code == 0, told.output
    assert "Queued T1 as t1" in told.stdout and "Queued S2 as s2" in told.stdout and "dsd watch s2" in told.stdout
    (_, teacher), (_, student) = sent(wire)
    assert "train" not in teacher and student["train"] == {"epochs": 3}
    assert teacher["priority"] == student["priority"] == 5
    wire.on(JOBS, *answers)
    listed = json.loads(dsd(wire, "submit", a_file(tmp_path, *FOUR[:2]), "--json").stdout)
    assert [job["id"] for job in listed] == ["t1", "s2"]


def test_an_override_for_a_job_that_the_file_has_not_is_refused(wire: Wire, tmp_path: Path) -> None:
    told = dsd(wire, "submit", a_file(tmp_path, *FOUR[:2]), "--set", "studnet:train.epochs=3")
    assert isinstance(told.exception, SpecError)
    assert "no job named 'studnet'" in told.exception.message and "teacher, student" in str(told.exception.hint)


def test_watching_a_file_ends_with_1_unless_all_its_jobs_succeed(wire: Wire, tmp_path: Path) -> None:
    for job_id, status in (("t1", "failed"), ("s2", "succeeded")):
        wire.on(f"{JOBS}/{job_id}", says(queued(job_id, status=status)))
        wire.on(f"{JOBS}/{job_id}/events", sends(b"event: end\ndata: {}\n\n"))
    wire.on(JOBS, says(queued("t1"), 202), says(queued("s2"), 202))
    told = dsd(wire, "submit", a_file(tmp_path, *FOUR[:2]), "--watch", "--json")
    assert [job["status"] for job in json.loads(told.stdout)] == ["failed", "succeeded"]
    assert told.exit_code == 1


def test_jobs_that_need_others_of_the_file_are_validated_by_their_fields(wire: Wire, tmp_path: Path) -> None:
    wire.on(f"{JOBS}/validate", says({"spec": TEACHER, "digest": "d", "findings": [], "estimates": {"steps": 7}}))
    told = dsd(wire, "validate", a_file(tmp_path, *FOUR))
    assert told.exit_code == 0, told.output
    assert told.stdout.count("The job can be run.") == 4 and told.stdout.count("Its fields are right") == 3
    assert len(wire.requests) == 1
    wrong = dsd(wire, "validate", a_file(tmp_path, TEACHER, STUDENT | {"losses": "dsdd"}))
    assert isinstance(wrong.exception, SpecError) and wrong.exception.field == "/losses"


def test_a_file_of_several_jobs_is_not_run_as_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds 2 jobs") as caught:
        job_file.read(Path(a_file(tmp_path, *FOUR[:2])))
    assert "`dsd submit` queues them" in str(caught.value.hint)
