"""GET /jobs and GET /jobs/{id}."""

from __future__ import annotations

from pathlib import Path

from dsd_core.errors import DataError
from jobs import db, store
from jobs.status import Reason
from tests.api.conftest import JOBS, Service, serving
from tests.client.scenes import result, run
from tests.jobs.builders import a_queued_job, claimed


def pages(service: Service, query: str) -> list[list[str]]:
    """The ids on each page, followed by the Link header."""
    found, url = [], f"{JOBS}?{query}"
    while url:
        answer = service.http.get(url)
        found.append([job["id"] for job in answer.json()["data"]])
        link = answer.headers.get("link", "")
        assert bool(link) == answer.json()["has_more"] == (answer.json()["next_cursor"] is not None)
        url = link.partition(">")[0].removeprefix("<")
    return found


def found(service: Service, query: str) -> list[str]:
    return [job_id for page in pages(service, query) for job_id in page]


def test_pages_hold_every_job_once_the_newest_first(service_on_each: Service) -> None:
    ids = [a_queued_job(service_on_each.engine) for _ in range(7)]
    assert pages(service_on_each, "limit=3") == [ids[:3:-1], ids[3:0:-1], ids[:1]]


def test_a_job_that_comes_between_two_pages_moves_nothing(service_on_each: Service) -> None:
    ids = [a_queued_job(service_on_each.engine) for _ in range(4)]
    first = service_on_each.http.get(f"{JOBS}?limit=2").json()
    a_queued_job(service_on_each.engine)
    second = service_on_each.http.get(f"{JOBS}?limit=2&after={first['next_cursor']}").json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]


def test_filters_hold_on_every_page(service: Service) -> None:
    wanted = [a_queued_job(service.engine, name="wanted", labels={"team": "a:b"}) for _ in range(3)]
    a_queued_job(service.engine, name="other")
    assert found(service, "limit=1&name=wanted") == found(service, "limit=2&label=team:a:b") == wanted[::-1]
    assert len(found(service, "kind=train&status=queued&group=default")) == 4
    for nothing in ("label=team:b", "status=running", "kind=distill", "name=another", "group=maps"):
        assert found(service, nothing) == []


def test_queued_jobs_know_their_place(service: Service) -> None:
    first, second = a_queued_job(service.engine), a_queued_job(service.engine)
    assert [job["queue_position"] for job in service.http.get(JOBS).json()["data"]] == [2, 1]
    claimed(service.engine, first)
    assert service.http.get(f"{JOBS}/{second}").json()["queue_position"] == 1
    assert service.http.get(f"{JOBS}/{first}").json()["queue_position"] is None


def test_a_running_job_shows_its_newest_progress(service: Service) -> None:
    claim = service.run()
    service.say(claim, run()[:6])
    job = service.http.get(f"{JOBS}/{claim.job_id}").json()
    assert (job["status"], job["worker"], job["attempt"]) == ("running", "worker-1", 1)
    assert {key: job["progress"][key] for key in ("percent", "phase", "epoch", "step", "steps", "eta_s")} == {
        "percent": 50.0,
        "phase": "baseline",
        "epoch": 1,
        "step": 100,
        "steps": 100,
        "eta_s": 83.0,
    }
    assert job["last_seq"] == 8


def test_a_finished_job_shows_its_result(service_on_each: Service) -> None:
    claim = service_on_each.succeed()
    job = service_on_each.http.get(f"{JOBS}/{claim.job_id}").json()
    assert (job["status"], job["reason"], job["error"]) == ("succeeded", "finished", None)
    assert job["result"] == result()
    assert job["finished_at"] >= job["started_at"] >= job["created_at"]


def test_a_failed_job_shows_why_and_what_to_do(service: Service) -> None:
    claim = service.run()
    error = DataError("mask.png holds the ids 200.", field="/dataset/root", hint="Translate them.").as_dict()
    service.finish(claim, Reason.INVALID_DATA, error=error | {"log_tail": "a line\nanother"})
    job = service.http.get(f"{JOBS}/{claim.job_id}").json()
    assert (job["status"], job["reason"]) == ("failed", "invalid_data")
    assert job["error"] == {
        "code": "invalid_data",
        "message": "mask.png holds the ids 200.",
        "hint": "Translate them.",
        "field": "/dataset/root",
        "log_tail": "a line\nanother",
    }


def test_a_tracked_job_leads_to_its_run_in_mlflow_and_its_model(
    tmp_path: Path, small_camvid: Path, sqlite_url: str
) -> None:
    public = "https://mlflow.example/"
    with serving(tmp_path, small_camvid, sqlite_url, mlflow_url="http://x:1", mlflow_public_url=public) as service:
        claim = service.succeed()
        with db.begin(service.engine) as s:
            store.set_tracking(s, claim.job_id, tracking="synced", tracking_seq=99, mlflow_run_id="r1", model_version=4)
        job = service.http.get(f"{JOBS}/{claim.job_id}").json()
    assert job["mlflow"] == {"run_id": "r1", "url": "https://mlflow.example/#/runs/r1"}
    assert job["model"] == {"name": "a-student", "version": 4, "tracking": "synced", "tracking_error": None}
