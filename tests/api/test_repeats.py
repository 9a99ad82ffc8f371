"""Requests that come many times at once, or again after the API died: against a real process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy import Engine

from client.errors import ApiError
from client.http import Client
from jobs import db
from jobs.settings import Settings
from tests.jobs.builders import a_queued_job, a_running_job, lapse, moves
from tests.worker.fleet import Fleet, free_port
from tests.worker.service import until

T = TypeVar("T")


class Api:
    """An API process on a database of its own, which may die and start again."""

    def __init__(self, folder: Path, database_url: str, data: Path) -> None:
        settings = Settings(home=folder, database_url=database_url)
        db.migrate(settings.db_url)
        self.engine: Engine = db.make_engine(settings.db_url)
        self.fleet = Fleet(settings, folder)
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.data = data

    def start(self, fault: str = "") -> None:
        process = self.fleet.api(self.port, fault=fault)
        until(lambda: process.poll() is not None or self.client.ready())

    def body(self, **fields: Any) -> dict[str, Any]:
        data = {"name": "camvid", "root": str(self.data)}
        return {"kind": "train", "name": "a", "dataset": data, "student": {"network": "espnet"}} | fields

    def count(self) -> int:
        return len(list(self.client.jobs()))

    def close(self) -> None:
        self.fleet.end()
        self.client.close()
        self.engine.dispose()


@pytest.fixture
def api(tmp_path: Path, postgres_url: str, small_camvid: Path) -> Iterator[Api]:
    api = Api(tmp_path, postgres_url, small_camvid)
    yield api
    api.close()


def at_once(times: int, call: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(times) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(times)]]


@pytest.mark.fault("F10")
def test_a_job_that_was_taken_before_the_api_died_is_found_by_the_repeated_request(api: Api) -> None:
    api.start(fault="api.after_commit:kill")
    with pytest.raises(httpx.TransportError):
        url = f"{api.client.base_url}/api/v1/jobs"
        httpx.post(url, json=api.body(), headers={"Idempotency-Key": "k1"}, timeout=60)
    api.start()
    (taken,) = api.client.jobs()
    assert api.client.submit(api.body(), key="k1")["id"] == taken["id"]
    assert api.count() == 1


@pytest.mark.fault("F36", "F37")
def test_what_is_asked_many_times_at_once_happens_once(api: Api) -> None:
    api.start()
    ids = {job["id"] for job in at_once(50, lambda: api.client.submit(api.body(), key="same"))}
    assert len(ids) == api.count() == 1
    with pytest.raises(ApiError) as refused:
        api.client.submit(api.body(name="other"), key="same")
    assert (refused.value.status, refused.value.problem["code"]) == (422, "idempotency_conflict")

    queued = a_queued_job(api.engine)
    assert sorted(at_once(10, lambda: cancelled(api, queued))) == [202] + 9 * [409]
    assert moves(api.engine, queued) == [(None, "queued"), ("queued", "cancelled")]

    running = a_running_job(api.engine).job_id
    assert at_once(10, lambda: cancelled(api, running)) == 10 * [202]
    lapse(api.engine)  # its worker is dead
    assert moves(api.engine, running)[2:] == [("running", "cancelling"), ("cancelling", "cancelled")]
    assert cancelled(api, running) == 409


def cancelled(api: Api, job_id: str) -> int:
    return httpx.post(f"{api.client.base_url}/api/v1/jobs/{job_id}/cancel", timeout=60).status_code
