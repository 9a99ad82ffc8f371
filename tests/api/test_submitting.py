"""POST /jobs and /jobs/validate: what is taken, and that a repeated request makes no second job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dsd_core.spec import parse_spec
from tests.api.conftest import JOBS, Service, problem_in
from tests.jobs.builders import history, outbox

JOB_KEYS = {
    *("id", "name", "kind", "labels", "status", "reason", "progress", "queue_position", "attempt", "max_attempts"),
    *("worker", "spec", "spec_digest", "result", "error", "model", "mlflow", "run_seconds", "last_seq", "created_at"),
    *("priority", "group", "needs", "waiting_for", "request", "retry_of", "cloned_from", "paused_at", "not_before"),
    *("estimated_start_at", "estimated_finish_at", "checkpoints_gone_at", "files_gone_at"),
    *("queued_at", "started_at", "finished_at", "cancel_requested_at", "heartbeat_at", "updated_at"),
}


def test_a_submitted_job_is_queued_with_its_first_event_and_its_message(service_on_each: Service) -> None:
    answer = service_on_each.http.post(JOBS, json=service_on_each.body(labels={"team": "maps"}))
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["status"], job["queue_position"], job["labels"]) == ("queued", 1, {"team": "maps"})
    assert [event.type for event in history(service_on_each.engine, job["id"])] == ["status"]
    assert [row.job_id for row in outbox(service_on_each.engine)] == [job["id"]]


def test_a_new_job_has_every_key_and_null_where_nothing_is_known(service: Service) -> None:
    job = service.submit()
    assert set(job) == JOB_KEYS
    assert job["progress"] is job["result"] is job["error"] is job["started_at"] is None
    assert job["model"] == {"name": "a-student", "version": None, "tracking": "pending", "tracking_error": None}
    assert job["mlflow"] == {"run_id": None, "url": None}
    assert job["created_at"].endswith("Z") and len(job["created_at"]) == len("2026-01-02T03:04:05.678Z")


def test_the_stored_spec_is_complete(service: Service) -> None:
    job = service.submit()
    spec = parse_spec(service.body())
    assert job["spec"] == spec.model_dump(mode="json")
    assert job["spec_digest"] == spec.digest()


def test_the_location_of_a_job_leads_to_it(service: Service) -> None:
    answer = service.http.post(JOBS, json=service.body())
    assert service.http.get(answer.headers["location"]).json() == answer.json()


def test_a_repeated_request_with_its_key_gives_the_same_job(service_on_each: Service) -> None:
    first = service_on_each.http.post(JOBS, json=service_on_each.body(), headers={"Idempotency-Key": "k1"})
    again = service_on_each.http.post(JOBS, json=service_on_each.body(), headers={"Idempotency-Key": "k1"})
    assert again.status_code == 202
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(service_on_each.http.get(JOBS).json()["data"]) == 1


def test_a_key_that_was_used_for_another_request_is_refused(service_on_each: Service) -> None:
    service_on_each.http.post(JOBS, json=service_on_each.body(), headers={"Idempotency-Key": "k1"})
    other = service_on_each.http.post(
        JOBS, json=service_on_each.body(name="another"), headers={"Idempotency-Key": "k1"}
    )
    assert "k1" in problem_in(other, 422, "idempotency_conflict")["detail"]


@pytest.mark.fault("F37")
def test_simultaneous_requests_with_one_key_make_one_job(service_on_each: Service) -> None:
    def submit(_: int) -> tuple[int, str]:
        answer = service_on_each.http.post(JOBS, json=service_on_each.body(), headers={"Idempotency-Key": "same"})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(submit, range(20)))
    assert len(answers) == 1 and answers.pop()[0] == 202
    assert len(service_on_each.http.get(JOBS).json()["data"]) == 1


def test_requests_without_a_key_make_a_job_each(service: Service) -> None:
    assert service.submit()["id"] != service.submit()["id"]


def test_a_key_that_is_no_key_is_refused(service: Service) -> None:
    for key in ("", "two words", "k" * 256):
        answer = service.http.post(JOBS, json=service.body(), headers={"Idempotency-Key": key})
        assert problem_in(answer, 422, "invalid_request")["errors"][0]["field"] == "header:Idempotency-Key"


def test_validating_resolves_the_spec_and_queues_nothing(service: Service) -> None:
    answer = service.http.post(f"{JOBS}/validate", json=service.body())
    assert answer.status_code == 200
    body = answer.json()
    assert body["spec"] == parse_spec(service.body()).model_dump(mode="json")
    assert body["digest"] == parse_spec(service.body()).digest()
    assert body["findings"] == [
        {
            "level": "warning",
            "field": "/train/batch",
            "message": "The batch (8) is larger than the training split (6 images).",
        }
    ]
    assert (body["estimates"]["steps"], body["estimates"]["train_images"]) == (40, 6)
    assert service.http.get(JOBS).json()["data"] == []


def test_a_duration_is_estimated_only_from_a_job_with_the_same_networks_and_crop(service: Service) -> None:
    before = service.http.post(f"{JOBS}/validate", json=service.body()).json()["estimates"]
    assert before["duration_s"] is None and "No job" in before["basis"]
    claim = service.succeed()
    after = service.http.post(f"{JOBS}/validate", json=service.body(name="other", train={"epochs": 3})).json()[
        "estimates"
    ]
    assert claim.job_id in after["basis"]
    assert after["duration_s"] == round(after["views"] / 45.2, 1)
    other = service.body(train={"augment": {"crop": [96, 96]}})
    assert service.http.post(f"{JOBS}/validate", json=other).json()["estimates"]["duration_s"] is None
