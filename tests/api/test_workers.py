"""GET /workers, drain and undrain."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update

from jobs import db, store
from jobs.tables import WorkerRow
from tests.api.conftest import Service, problem_in
from tests.jobs.builders import an_offer

WORKERS = "/api/v1/workers"


def a_worker(service: Service, name: str) -> None:
    with db.begin(service.engine) as s:
        store.register_worker(s, an_offer(name, device="cuda", devices=("0", "1"), labels={"gpu": "a100"}))


def test_workers_are_listed_with_what_they_have_and_whether_they_live(service_on_each: Service) -> None:
    assert service_on_each.http.get(WORKERS).json() == {"data": []}
    for name in ("worker-2@here", "worker-1@here"):
        a_worker(service_on_each, name)
    with db.begin(service_on_each.engine) as s:
        earlier = db.db_now(s) - timedelta(seconds=service_on_each.settings.lease_s + 1)
        s.execute(update(WorkerRow).where(WorkerRow.name == "worker-2@here").values(heartbeat_at=earlier))
    first, second = service_on_each.http.get(WORKERS).json()["data"]
    assert (first["name"], first["live"], second["live"]) == ("worker-1@here", True, False)
    assert (first["device"], first["devices"], first["labels"]) == ("cuda", ["0", "1"], {"gpu": "a100"})
    assert first["job_id"] is first["drain"] is None


def test_a_worker_is_drained_after_its_job_or_now_and_takes_jobs_again(service_on_each: Service) -> None:
    a_worker(service_on_each, "worker-1@here")
    for ask, drain in (("drain", "after_job"), ("drain?release=true", "now"), ("undrain", None)):
        answer = service_on_each.http.post(f"{WORKERS}/worker-1@here/{ask}")
        assert (answer.status_code, answer.json()["drain"]) == (202, drain)
        with db.begin(service_on_each.engine) as s:
            assert store.worker_beat(s, "worker-1@here", None) == drain


def test_an_unknown_worker_is_not_found_and_the_known_ones_are_named(service: Service) -> None:
    a_worker(service, "worker-1@here")
    for ask in ("drain", "undrain"):
        problem = problem_in(service.http.post(f"{WORKERS}/worker-3/{ask}"), 404, "worker_not_found")
        assert "worker-1@here" in problem["hint"]


def test_a_name_that_no_database_can_hold_is_refused(service_on_each: Service) -> None:
    problem = problem_in(service_on_each.http.post(f"{WORKERS}/a%00b/drain"), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "path:name"
