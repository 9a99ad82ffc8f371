"""What is asked of a job over HTTP: cancel, pause, resume, stop, another priority, other labels, retry, clone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api.merge_patch import merged
from jobs.status import Reason
from tests.api.conftest import JOBS, Service, problem_in
from tests.jobs.builders import a_queued_job, cancel, history, lapse, moves


def ask(service: Service, job_id: str, wish: str, **request: Any) -> Any:
    return service.http.post(f"{JOBS}/{job_id}/{wish}", **request)


def test_a_queued_job_is_cancelled_at_once(service_on_each: Service) -> None:
    job_id = a_queued_job(service_on_each.engine)
    answer = service_on_each.http.post(f"{JOBS}/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.json()["reason"] == "cancelled_by_user"


def test_a_running_job_is_asked_to_end_and_asking_again_changes_nothing(service_on_each: Service) -> None:
    claim = service_on_each.run()
    first = service_on_each.http.post(f"{JOBS}/{claim.job_id}/cancel")
    assert (first.status_code, first.json()["status"]) == (202, "cancelling")
    again = service_on_each.http.post(f"{JOBS}/{claim.job_id}/cancel")
    assert (again.status_code, again.json()) == (202, first.json())


@pytest.mark.fault("F36")
def test_ten_cancels_at_once_are_one(service_on_each: Service) -> None:
    queued, running = a_queued_job(service_on_each.engine), service_on_each.run().job_id

    def codes(job_id: str) -> list[int]:
        with ThreadPoolExecutor(10) as pool:
            return sorted(pool.map(lambda _: ask(service_on_each, job_id, "cancel").status_code, range(10)))

    assert codes(queued) == [202] + 9 * [409]
    assert codes(running) == 10 * [202]
    lapse(service_on_each.engine)  # its worker is dead
    assert moves(service_on_each.engine, queued)[1:] == [("queued", "cancelled")]
    assert moves(service_on_each.engine, running)[2:] == [("running", "cancelling"), ("cancelling", "cancelled")]


@pytest.mark.parametrize("ending", ["succeeded", "cancelled"])
def test_a_job_that_has_ended_cannot_be_cancelled(steady: Service, ending: str) -> None:
    job_id = steady.succeed().job_id if ending == "succeeded" else a_queued_job(steady.engine)
    if ending == "cancelled":
        steady.http.post(f"{JOBS}/{job_id}/cancel")
    problem = problem_in(steady.http.post(f"{JOBS}/{job_id}/cancel"), 409, "not_cancellable")
    assert problem["job_status"] == ending and ending in problem["detail"]


def test_cancelling_an_unknown_job_is_not_found(steady: Service) -> None:
    problem_in(steady.http.post(f"{JOBS}/nothere/cancel"), 404, "job_not_found")


def test_a_paused_job_waits_until_it_is_resumed(service_on_each: Service) -> None:
    job_id = service_on_each.submit()["id"]
    paused = ask(service_on_each, job_id, "pause")
    assert paused.status_code == 202
    assert (paused.json()["status"], paused.json()["waiting_for"]) == ("queued", "paused")
    assert paused.json()["paused_at"] and paused.json()["queue_position"] is None
    resumed = ask(service_on_each, job_id, "resume").json()
    assert (resumed["paused_at"], resumed["queue_position"]) == (None, 1)
    problem_in(ask(service_on_each, job_id, "resume"), 409, "not_possible")


@pytest.mark.parametrize("wish", ["pause", "stop"])
def test_a_running_job_shows_what_it_is_asked_until_its_worker_obeys(steady: Service, wish: str) -> None:
    claim = steady.run()
    answer = ask(steady, claim.job_id, wish)
    assert (answer.status_code, answer.json()["status"], answer.json()["request"]) == (202, "running", wish)
    assert history(steady.engine, claim.job_id)[-1].data == {"request": wish}
    assert ask(steady, claim.job_id, wish).json()["request"] == wish


def test_a_job_that_has_not_started_has_nothing_to_keep(steady: Service) -> None:
    problem = problem_in(ask(steady, steady.submit()["id"], "stop"), 409, "not_possible")
    assert problem["job_status"] == "queued" and "Cancel" in problem["hint"]


@pytest.mark.parametrize("wish", ["pause", "resume", "stop", "retry"])
def test_what_a_succeeded_job_cannot_do_is_refused_with_its_status(steady: Service, wish: str) -> None:
    job_id = steady.succeed().job_id
    assert problem_in(ask(steady, job_id, wish), 409, "not_possible")["job_status"] == "succeeded"


def test_a_job_is_given_another_priority_and_other_labels(service_on_each: Service) -> None:
    first, second = (service_on_each.submit(labels={"team": "maps", "run": "1"})["id"] for _ in range(2))
    wishes = {"priority": 5, "labels": {"run": None, "stage": "two"}}
    answer = service_on_each.http.patch(f"{JOBS}/{second}", json=wishes)
    job = answer.json()
    assert (answer.status_code, job["priority"], job["queue_position"]) == (200, 5, 1)
    assert job["labels"] == {"team": "maps", "stage": "two"}
    assert job["spec"]["labels"] == {"team": "maps", "run": "1"}
    assert service_on_each.http.get(f"{JOBS}/{first}").json()["queue_position"] == 2
    assert service_on_each.http.patch(f"{JOBS}/{second}", json={}).json()["last_seq"] == job["last_seq"]


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"priority": 101}, "/priority"),
        ({"priority": "high"}, "/priority"),
        ({"prioriti": 1}, "/prioriti"),
        ({"labels": {"team": 3}}, "/labels/team"),
        ({"status": "succeeded"}, "/status"),
        ([], ""),
    ],
)
def test_a_wish_that_is_none_is_named(steady: Service, wishes: Any, field: str) -> None:
    problem = problem_in(steady.http.patch(f"{JOBS}/x", json=wishes), 422, "invalid_spec")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert "change of the job" in problem["detail"]


def test_an_ended_job_keeps_its_priority_and_may_get_labels(steady: Service) -> None:
    job_id = steady.succeed().job_id
    problem_in(steady.http.patch(f"{JOBS}/{job_id}", json={"priority": 1, "labels": {"a": "b"}}), 409, "not_possible")
    assert steady.http.get(f"{JOBS}/{job_id}").json()["labels"] == {}
    assert steady.http.patch(f"{JOBS}/{job_id}", json={"labels": {"a": "b"}}).json()["labels"] == {"a": "b"}


def test_a_failed_job_is_retried_as_a_new_one_that_leads_back_to_it(service_on_each: Service) -> None:
    claim = service_on_each.run(labels={"run": "1"})
    service_on_each.finish(claim, Reason.DIVERGED)
    service_on_each.http.patch(f"{JOBS}/{claim.job_id}", json={"labels": {"run": "2"}})
    answer = ask(service_on_each, claim.job_id, "retry")
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"{JOBS}/{job['id']}")
    assert (job["retry_of"], job["status"], job["labels"]) == (claim.job_id, "queued", {"run": "2"})
    assert job["id"] != claim.job_id and job["spec"]["train"] == claim.spec["train"]


def test_a_clone_is_the_old_job_with_a_merge_patch_applied(service_on_each: Service) -> None:
    old = service_on_each.submit(train={"epochs": 40, "clip_norm": 2.0}, seeds=[1, 2])
    patch = {"train": {"epochs": 3, "clip_norm": None}, "seeds": [7]}
    answer = ask(service_on_each, old["id"], "clone", json=patch)
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"{JOBS}/{job['id']}")
    assert (job["cloned_from"], job["retry_of"]) == (old["id"], None)
    train = old["spec"]["train"] | {"epochs": 3, "clip_norm": 5.0}
    assert job["spec"] == old["spec"] | {"train": train, "seeds": [7]}
    assert ask(service_on_each, old["id"], "clone").json()["spec"] == old["spec"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"train": {"epochs": 0}}, "/train/epochs"),
        ({"train": {"epoch": 3}}, "/train/epoch"),
        ({"name": None}, "/name"),
        ({"needs": ["nothere"]}, "/needs/0"),
        ({"dataset": {"root": "/not/here"}}, "/dataset/root"),
    ],
)
def test_a_clone_is_checked_like_any_new_job(steady: Service, patch: dict[str, Any], field: str) -> None:
    old = steady.submit()["id"]
    answer = ask(steady, old, "clone", json=patch)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert steady.http.get(JOBS).json()["data"][0]["id"] == old


def test_a_patch_that_is_no_object_is_refused(steady: Service) -> None:
    answer = ask(steady, steady.submit()["id"], "clone", json=[1])
    assert "train" in problem_in(answer, 400, "invalid_json")["hint"]


@pytest.mark.parametrize("wish", ["retry", "clone"])
def test_a_repeated_retry_or_clone_with_its_key_makes_no_second_job(steady: Service, wish: str) -> None:
    one, other = a_queued_job(steady.engine), a_queued_job(steady.engine)
    for job_id in (one, other):
        cancel(steady.engine, job_id)
    headers = {"Idempotency-Key": wish}
    first = ask(steady, one, wish, headers=headers)
    again = ask(steady, one, wish, headers=headers)
    assert again.json() == first.json() and again.headers["idempotency-replayed"] == "true"
    problem_in(ask(steady, other, wish, headers=headers), 422, "idempotency_conflict")
    problem_in(steady.http.post(JOBS, json=steady.body(), headers=headers), 422, "idempotency_conflict")


def test_the_key_of_a_clone_holds_for_its_patch_alone(steady: Service) -> None:
    old, headers = steady.submit()["id"], {"Idempotency-Key": "k1"}
    assert ask(steady, old, "clone", json={"name": "b"}, headers=headers).status_code == 202
    problem_in(ask(steady, old, "clone", json={"name": "c"}, headers=headers), 422, "idempotency_conflict")


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches_do_what_appendix_a_of_rfc_7396_says(target: Any, patch: Any, result: Any) -> None:
    assert merged(target, patch) == result
