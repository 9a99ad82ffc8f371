"""Bodies that are no job at all: each is refused as what it is, and none is a server error."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.api.conftest import JOBS, Service, problem_in

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "line 1, column 2"),
        (b'{"name": "a",\n "kind" "train"}', "line 2, column 9"),
        (b"name: a-student", "not JSON"),
        (b"\xff\xfe{}", "byte 0"),
        (b'{"name": NaN}', "NaN"),
        (b'{"train": {"learning_rate": Infinity}}', "Infinity"),
        (b'{"train": {"learning_rate": -Infinity}}', "-Infinity"),
        (b'{"train": {"learning_rate": 1e400}}', "too large"),
        (b'{"train": {"warmup_steps": 1' + b"0" * 30 + b"}}", "64 bits"),
        (b'{"train": {"seed": 1' + b"0" * 5000 + b"}}", "too long"),
        (b'{"name": "a", "name": "b"}', "twice"),
        (b'{"name": "a\\u0000b"}', "NUL"),
        (b'{"labels": {"\\ud800": "x"}}', "surrogate"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "deeper than 20"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 20"),
        (b"[" * 100_000, "deeper than 20"),
        (b'{"labels": [' + b"1," * 20_000 + b"1]}", "more than 10000"),
    ],
)
def test_json_that_no_job_needs_is_refused(steady: Service, body: bytes, says: str) -> None:
    for path in (JOBS, f"{JOBS}/validate"):
        problem = problem_in(steady.http.post(path, content=body, headers=JSON), 400, "invalid_json")
        assert says in problem["detail"]


@pytest.mark.parametrize("body", ["[]", "null", "3", '"espnet"', '{"student": []}', '{"losses": {"loss": "ce"}}'])
def test_json_of_another_shape_is_a_wrong_job(steady: Service, body: str) -> None:
    problem = problem_in(steady.http.post(JOBS, content=body, headers=JSON), 422, "invalid_spec")
    assert problem["errors"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/yaml", ""])
def test_a_body_must_be_sent_as_json(steady: Service, media_type: str) -> None:
    """So that a page of another site cannot submit through a visitor's browser, which sends these types unasked."""
    answer = steady.http.post(JOBS, content=json.dumps(steady.body()), headers={"Content-Type": media_type})
    assert "application/json" in problem_in(answer, 415, "wrong_media_type")["hint"]


def test_a_media_type_may_have_parameters(service: Service) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert service.http.post(JOBS, content=json.dumps(service.body()), headers=headers).status_code == 202


def test_a_body_that_says_it_is_too_large_is_refused(steady: Service) -> None:
    body = b" " * (steady.settings.max_body_bytes + 1)
    problem = problem_in(steady.http.post(JOBS, content=body, headers=JSON), 413, "body_too_large")
    assert str(steady.settings.max_body_bytes) in problem["detail"]


def test_a_body_that_turns_out_too_large_is_refused(steady: Service) -> None:
    def without_a_length() -> Iterator[bytes]:
        for _ in range(2 + steady.settings.max_body_bytes // 65536):
            yield b" " * 65536

    answer = steady.http.post(JOBS, content=without_a_length(), headers=JSON)
    assert "content-length" not in answer.request.headers
    problem_in(answer, 413, "body_too_large")


def test_a_body_of_just_the_limit_is_read(service: Service) -> None:
    body = json.dumps(service.body()).encode().ljust(service.settings.max_body_bytes)
    assert service.http.post(JOBS, content=body, headers=JSON).status_code == 202
