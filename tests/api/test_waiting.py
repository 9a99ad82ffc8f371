"""What a queued job says it waits for, what it needs, and when it will start and end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import event

from jobs import db, store
from jobs.status import Drain, Reason
from tests.api.conftest import JOBS, Service, problem_in
from tests.client.scenes import progress
from tests.jobs.builders import a_queued_job, an_offer, cancel, claimed, outbox


def a_worker(service: Service, name: str = "worker-1", **offer: Any) -> None:
    with db.begin(service.engine) as s:
        store.register_worker(s, an_offer(name, **offer))


def seen(service: Service, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = service.http.get(f"{JOBS}/{job_id}").json()
    return job


def test_a_job_waits_for_a_worker_that_has_what_it_asks_for(service: Service) -> None:
    job_id = service.submit(resources={"memory_gib": 16})["id"]
    assert seen(service, job_id)["waiting_for"] == "worker"
    a_worker(service, "small", memory_gib=8)
    assert seen(service, job_id)["waiting_for"] == "worker"
    a_worker(service, "large", memory_gib=32)
    assert seen(service, job_id)["waiting_for"] == "slot"
    with db.begin(service.engine) as s:
        store.set_drain(s, "large", Drain.AFTER_JOB)
    assert seen(service, job_id)["waiting_for"] == "worker"


def test_a_job_whose_message_could_not_be_sent_waits_for_the_broker(service_on_each: Service) -> None:
    a_worker(service_on_each)
    job_id = service_on_each.submit()["id"]
    (row,) = outbox(service_on_each.engine)
    with db.begin(service_on_each.engine) as s:
        store.mark_failed(s, [row.id], delay_s=1)
    assert seen(service_on_each, job_id)["waiting_for"] == "broker"
    with db.begin(service_on_each.engine) as s:
        store.mark_sent(s, [row.id])
    assert seen(service_on_each, job_id)["waiting_for"] == "slot"


def test_a_job_shows_what_it_needs_and_where_that_is(service_on_each: Service) -> None:
    first, second = (service_on_each.submit()["id"] for _ in range(2))
    job = service_on_each.submit(needs=[second, first])
    assert job["needs"] == [{"id": first, "status": "queued"}, {"id": second, "status": "queued"}]
    assert (job["waiting_for"], job["queue_position"]) == ("needs", None)
    cancel(service_on_each.engine, second)
    failed = seen(service_on_each, job["id"])
    assert (failed["status"], failed["reason"], failed["waiting_for"]) == ("failed", "need_failed", None)
    assert [need["status"] for need in failed["needs"]] == ["queued", "cancelled"]


def test_a_retry_cannot_need_what_has_failed(steady: Service) -> None:
    need = a_queued_job(steady.engine)
    job = steady.submit(needs=[need])
    cancel(steady.engine, need)
    problem = problem_in(steady.http.post(f"{JOBS}/{job['id']}/retry"), 422, "need_failed")
    assert problem["errors"][0]["field"] == "/needs" and need in problem["detail"]


def test_after_a_failure_a_job_says_when_its_next_try_is(steady: Service) -> None:
    claim = steady.run()
    steady.finish(claim, Reason.INTERNAL, backoff_base_s=60.0)
    job = seen(steady, claim.job_id)
    assert (job["status"], job["waiting_for"]) == ("queued", "back_off")
    assert job["not_before"] > job["queued_at"]


def test_start_and_end_are_estimated_for_one_job_and_left_out_of_lists(service: Service) -> None:
    a_worker(service)
    service.finish(service.run(), result=None)  # took one second
    job_id = service.submit()["id"]
    job = seen(service, job_id)
    start, finish = (datetime.fromisoformat(job[f"estimated_{what}_at"]) for what in ("start", "finish"))
    assert finish - start == timedelta(seconds=1)
    assert start >= datetime.fromisoformat(job["created_at"])
    listed = service.http.get(JOBS).json()["data"][0]
    assert listed == job | {"estimated_start_at": None, "estimated_finish_at": None}


def test_a_running_job_tells_its_end_by_its_progress(service: Service) -> None:
    claim = service.run()
    service.say(claim, [progress("baseline", 50, 100, 50)])
    job = seen(service, claim.job_id)
    assert job["estimated_start_at"] == job["started_at"] and job["waiting_for"] is None
    assert job["estimated_finish_at"] > job["updated_at"]


def test_a_page_of_jobs_takes_as_many_queries_as_a_job(service: Service) -> None:
    a_worker(service)

    def queries() -> int:
        seen: list[str] = []
        event.listen(service.engine, "before_cursor_execute", note := lambda *args: seen.append(args[2]))
        service.http.get(f"{JOBS}?limit=100")
        event.remove(service.engine, "before_cursor_execute", note)
        return len(seen)

    need = a_queued_job(service.engine)
    a_queued_job(service.engine, needs=[need])
    few = queries()
    for priority in range(5):
        a_queued_job(service.engine, needs=[need])
        a_queued_job(service.engine, priority=priority)
        claimed(service.engine, a_queued_job(service.engine))
    assert queries() == few
