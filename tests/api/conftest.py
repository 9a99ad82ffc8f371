"""The API on a database of its own, and jobs put there through the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.main import create_app
from dsd_core.events import parse
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Reason
from jobs.store import Claim
from tests.builders import tiny_camvid
from tests.client.scenes import result, run
from tests.jobs.builders import claimed

JOBS = "/api/v1/jobs"


@dataclass
class Service:
    """The API under test, and the database and folders it stands on."""

    http: TestClient
    settings: Settings
    engine: Engine
    data: Path  # a small CamVid

    def body(self, **fields: Any) -> dict[str, Any]:
        """The body of a submission."""
        data = {"name": "camvid", "root": str(self.data)}
        return {"kind": "train", "name": "a-student", "dataset": data, "student": {"network": "espnet"}} | fields

    def submit(self, **fields: Any) -> dict[str, Any]:
        """Queue a job through the API."""
        answer = self.http.post(JOBS, json=self.body(**fields))
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def run(self, **fields: Any) -> Claim:
        """Queue a job and have a worker claim it."""
        return claimed(self.engine, self.submit(**fields)["id"])

    def say(self, claim: Claim, events: list[dict[str, Any]], first: int = 1) -> None:
        """Have the worker copy events of the training process."""
        with db.begin(self.engine) as s:
            whole = [parse(event).model_dump(mode="json") for event in events]
            assert store.append_events(s, claim, [(event, index) for index, event in enumerate(whole, first)])

    def finish(self, claim: Claim, reason: Reason = Reason.FINISHED, **more: Any) -> None:
        with db.begin(self.engine) as s:
            assert store.finish(s, claim, reason, run_seconds=1.0, **more)

    def succeed(self, **fields: Any) -> Claim:
        """A job that ran from its first event to its result."""
        claim = self.run(**fields)
        self.say(claim, run())
        self.finish(claim, result=result())
        return claim

    def folder(self, job_id: str) -> Path:
        found = self.settings.run_dir(job_id)
        found.mkdir(parents=True, exist_ok=True)
        return found


@contextmanager
def serving(tmp_path: Path, data: Path, database_url: str, **settings: Any) -> Iterator[Service]:
    made = Settings(home=tmp_path / "home", database_url=database_url, **settings)
    db.migrate(made.db_url)
    app = create_app(made)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False) as http:
        yield Service(http, made, app.state.engine, data)


@pytest.fixture(scope="session")
def small_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture
def service(tmp_path: Path, small_camvid: Path, sqlite_url: str) -> Iterator[Service]:
    with serving(tmp_path, small_camvid, sqlite_url) as made:
        yield made


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, small_camvid: Path) -> Iterator[Service]:
    """One for all tests of a module that do not mind the jobs of others."""
    folder = tmp_path_factory.mktemp("steady")
    with serving(folder, small_camvid, f"sqlite:///{folder / 'jobs.db'}") as made:
        yield made


@pytest.fixture
def service_on_each(tmp_path: Path, small_camvid: Path, database_url: str) -> Iterator[Service]:
    """On SQLite, then on PostgreSQL."""
    with serving(tmp_path, small_camvid, database_url) as made:
        yield made


def problem_in(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which has all its members."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code", "hint", "errors"} <= set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:dsd:problem:{code}"
    assert all(set(error) == {"field", "message", "hint"} for error in body["errors"])
    return body
