"""Every error is an RFC 9457 problem document that says nothing of the inside; keys and hosts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

import dsd_core.errors
from api import errors
from api.main import create_app
from jobs import db
from jobs.settings import Settings
from tests.api.conftest import JOBS, Service, problem_in, serving

EVERY = [
    ("GET", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs/validate"),
    ("GET", "/api/v1/jobs/x"),
    ("PATCH", "/api/v1/jobs/x"),
    *(("POST", f"/api/v1/jobs/x/{ask}") for ask in ("cancel", "pause", "resume", "stop", "retry", "clone")),
    ("GET", "/api/v1/jobs/x/events"),
    ("GET", "/api/v1/jobs/x/logs"),
    ("GET", "/api/v1/jobs/x/metrics"),
    ("GET", "/api/v1/workers"),
    ("POST", "/api/v1/workers/x/drain"),
    ("POST", "/api/v1/workers/x/undrain"),
    ("GET", "/api/v1/storage"),
    ("POST", "/api/v1/storage/prune"),
    ("GET", "/api/v1/signals"),
    ("POST", "/api/v1/signals/verify"),
    ("POST", "/api/v1/signals/prune"),
    ("GET", "/api/v1/catalog"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/models/x"),
    ("GET", "/api/v1/models/x/versions/1"),
    ("GET", "/api/v1/models/x/versions/1/files/f"),
]


def test_an_unknown_path_is_a_problem(steady: Service) -> None:
    problem = problem_in(steady.http.get("/api/v1/joobs"), 404, "not_found")
    assert problem["instance"] == "/api/v1/joobs" and "/docs" in problem["hint"]


def test_a_method_that_a_path_lacks_is_a_problem_with_those_it_has(steady: Service) -> None:
    answer = steady.http.delete(JOBS)
    problem_in(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "query:limit"),
        ("limit=201", "query:limit"),
        ("limit=many", "query:limit"),
        ("status=canceled", "query:status"),
        ("kind=evaluation", "query:kind"),
        ("label=team", "query:label"),
        ("label=team:%00", "query:label"),
        ("name=%00", "query:name"),
        ("after=%27--", "query:after"),
    ],
)
def test_a_wrong_parameter_is_named(service_on_each: Service, query: str, field: str) -> None:
    problem = problem_in(service_on_each.http.get(f"{JOBS}?{query}"), 422, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]


@pytest.mark.parametrize("job_id", ["nothere", "%00", "..%2F..", "a" * 500, "%F0%9F%92%A9", "'; DROP TABLE jobs; --"])
def test_an_unknown_job_is_not_found_whatever_its_id(service_on_each: Service, job_id: str) -> None:
    for path in ("", "/events", "/logs", "/metrics"):
        assert service_on_each.http.get(f"{JOBS}/{job_id}{path}").status_code == 404
    for ask in ("cancel", "pause", "resume", "stop", "retry", "clone"):
        answer = service_on_each.http.post(f"{JOBS}/{job_id}/{ask}")
        assert answer.status_code == 404 and answer.headers["content-type"] == errors.PROBLEM_TYPE
    assert service_on_each.http.patch(f"{JOBS}/{job_id}", json={"priority": 1}).status_code == 404


def test_a_database_that_is_away_is_a_503_with_a_time_to_come_again(tmp_path: Path, small_camvid: Path) -> None:
    """And the key decides before the database is asked."""
    away = f"postgresql+psycopg://nobody@localhost/none?host={tmp_path}"
    app = create_app(Settings(home=tmp_path, database_url=away))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        for method, path in EVERY:
            if (
                path.startswith("/api/v1/signals")
                or path.endswith(("/catalog", "/jobs/validate"))
                or (method, path) == ("POST", JOBS)
            ):
                continue
            answer = http.request(method, path, json={})
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "5"
            assert "nobody" not in answer.text and str(tmp_path) not in answer.text
            problem_in(answer, 503, "database_away")
        body = {"kind": "train", "name": "a", "dataset": {"name": "camvid", "root": str(small_camvid)}}
        answer = http.post(JOBS, json=body | {"student": {"network": "espnet"}})
        assert "Idempotency-Key" in problem_in(answer, 503, "database_away")["hint"]
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").status_code == 503


def test_a_surprise_is_a_500_that_says_nothing_of_the_inside(service: Service) -> None:
    claim = service.run()
    _break(service.engine, claim.job_id)
    problem = problem_in(service.http.get(f"{JOBS}/{claim.job_id}"), 500, "internal")
    assert "secret" not in str(problem) and "Traceback" not in str(problem)


def _break(engine: Engine, job_id: str) -> None:
    """A row as no code of ours writes it."""
    with db.begin(engine) as s:
        s.execute(text("UPDATE jobs SET labels = '[\"secret\"]' WHERE id = :id"), {"id": job_id})


def test_every_error_class_has_a_status() -> None:
    classes = [kind for kind in vars(dsd_core.errors).values() if _is_error(kind)]
    classes += [kind for kind in vars(errors).values() if _is_error(kind)]
    assert all(any(parent in errors.STATUS for parent in kind.__mro__) for kind in classes)
    codes = {kind.code for kind in errors.STATUS}
    assert len(codes) == len(errors.STATUS)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, dsd_core.errors.DsdError)


def test_with_a_key_every_path_of_the_api_wants_it(tmp_path: Path, small_camvid: Path, sqlite_url: str) -> None:
    with serving(tmp_path, small_camvid, sqlite_url, api_key="s3cret-кey") as service:
        for method, path in EVERY:
            for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic czNjcmV0"}):
                answer = service.http.request(method, path, headers=wrong)
                problem_in(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in answer.text


def test_with_the_key_the_api_answers(tmp_path: Path, small_camvid: Path, sqlite_url: str) -> None:
    with serving(tmp_path, small_camvid, sqlite_url, api_key="s3cret") as service:
        assert service.http.get(JOBS, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert service.http.get("/livez").status_code == service.http.get("/docs").status_code == 200
        assert service.http.get(f"{JOBS}?api_key=s3cret").status_code == 401


def test_the_list_of_paths_above_is_complete(steady: Service) -> None:
    paths = _document(steady.http.app)["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods if "/api/" in path}
    assert len(listed) == len(EVERY)


def _document(app: object) -> dict[str, dict[str, dict[str, object]]]:
    assert isinstance(app, FastAPI)
    return app.openapi()


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost/abc?", "", "127.0.0.1@evil"])
def test_a_foreign_host_header_is_refused(steady: Service, host: str) -> None:
    problem_in(steady.http.get("/livez", headers={"Host": host}), 400, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_our_own_names_are_answered_with_any_port(steady: Service, host: str) -> None:
    assert steady.http.get("/livez", headers={"Host": host}).status_code == 200


def test_only_the_table_of_errors_speaks_of_statuses_of_errors() -> None:
    """No endpoint makes up a problem of its own."""
    for file in Path(errors.__file__).parent.glob("routes/*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert "HTTPException" not in names, file
