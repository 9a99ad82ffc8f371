"""The HTTP client when connections break, pages follow pages and the service refuses."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from client.errors import ApiError, DownloadError, ServiceAway
from client.http import Client, parse_events
from tests.client.conftest import Wire, breaks, says, sends

SPEC = {"name": "x"}
JOBS = "/api/v1/jobs"
EVENTS = "/api/v1/jobs/job_1/events"
FILE = "/api/v1/models/m/versions/1/files/model.onnx"


def stream(text: str, *, broken: bool) -> object:
    """Server-sent events; a broken stream ends without being finished."""
    return sends(text.encode(), promised=len(text) + 100 if broken else None, Content_Type="text/event-stream")


def event(seq: int, kind: str = "note") -> str:
    return f'id: {seq}\nevent: {kind}\ndata: {{"seq": {seq}, "type": "{kind}", "data": {{}}}}\n\n'


def test_a_submission_repeated_after_a_broken_connection_carries_the_same_idempotency_key(wire: Wire) -> None:
    wire.on(JOBS, breaks, says({"id": "job_1"}, 202))
    with Client(wire.url) as client:
        assert client.submit(SPEC) == {"id": "job_1"}
    keys = [headers["idempotency-key"] for _, _, headers, _ in wire.requests]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_two_submissions_carry_different_idempotency_keys(wire: Wire) -> None:
    wire.on(JOBS, says({"id": "job_1"}, 202))
    with Client(wire.url) as client:
        client.submit(SPEC)
        client.submit(SPEC)
    assert len({headers["idempotency-key"] for _, _, headers, _ in wire.requests}) == 2


def test_a_service_that_restarts_is_asked_again(wire: Wire) -> None:
    wire.on("/api/v1/jobs/job_1", says({}, 503), says({"id": "job_1"}))
    with Client(wire.url) as client:
        assert client.job("job_1")["id"] == "job_1"


def test_a_refused_connection_says_how_to_start_the_service() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceAway) as caught:
        client.job("job_1")
    assert "does not answer at http://127.0.0.1:9" in str(caught.value)
    assert "dsd up" in str(caught.value)


def test_a_problem_document_becomes_an_error_with_fields_and_hint(wire: Wire) -> None:
    problem = {
        "title": "Invalid job",
        "detail": "The job specification is wrong.",
        "code": "invalid_spec",
        "hint": "Look at GET /catalog.",
        "errors": [{"field": "/train/epochs", "message": "must be at least 1"}],
    }
    wire.on(JOBS, says(problem, 422))
    with Client(wire.url) as client, pytest.raises(ApiError) as caught:
        client.submit(SPEC)
    error = caught.value
    assert (error.status, error.field, error.hint) == (422, "/train/epochs", "Look at GET /catalog.")
    assert "/train/epochs: must be at least 1" in error.message
    assert error.as_dict()["code"] == "invalid_spec"


def test_an_error_page_that_is_no_problem_document_is_still_an_error(wire: Wire) -> None:
    wire.on(JOBS, sends(b"<html>", 418))
    with Client(wire.url) as client, pytest.raises(ApiError, match="418"):
        client.submit(SPEC)


def test_jobs_follow_the_cursor_to_the_last_page(wire: Wire) -> None:
    first = {"data": [{"id": "job_2"}], "has_more": True, "next_cursor": "c1"}
    wire.on(JOBS, says(first), says({"data": [{"id": "job_1"}], "has_more": False, "next_cursor": None}))
    with Client(wire.url) as client:
        assert [job["id"] for job in client.jobs(status="failed")] == ["job_2", "job_1"]
    assert "status=failed" in wire.requests[0][1] and "after=c1" in wire.requests[1][1]


def test_events_go_on_after_a_broken_connection_without_loss_or_repetition(wire: Wire) -> None:
    wire.on(
        EVENTS,
        stream(event(1) + event(2) + "id: 3\nevent: no", broken=True),
        breaks,
        stream(event(2) + event(3) + 'event: end\ndata: {"status": "succeeded"}\n\n', broken=False),
    )
    with Client(wire.url) as client:
        assert [item["seq"] for item in client.events("job_1")] == [1, 2, 3]
    assert [headers.get("last-event-id") for _, _, headers, _ in wire.requests] == [None, "2", "2"]


def test_events_of_an_unknown_job_are_an_error_at_once(wire: Wire) -> None:
    wire.on(EVENTS, says({"detail": "There is no job job_1."}, 404))
    with Client(wire.url) as client, pytest.raises(ApiError, match="no job"):
        list(client.events("job_1"))


def test_comments_and_unfinished_events_of_a_stream_are_left_out() -> None:
    lines = [": ping", "", "event: note", 'data: {"a":', "data: 1}", "", "event: note", "data: {"]
    assert list(parse_events(iter(lines))) == [("note", {"a": 1})]


def test_a_download_that_broke_goes_on_where_it_stopped(wire: Wire, tmp_path: Path) -> None:
    body = bytes(range(256)) * 400
    etag = f'"{hashlib.sha256(body).hexdigest()}"'

    def rest(request: BaseHTTPRequestHandler) -> None:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        sends(body[start:], 206, ETag=etag)(request)

    wire.on(FILE, sends(body[:60_000], promised=len(body), ETag=etag), rest)
    seen: list[tuple[int, int | None]] = []
    with Client(wire.url) as client:
        saved = client.download("m", "1", "model.onnx", tmp_path / "model.onnx", lambda *at: seen.append(at))
    assert saved.read_bytes() == body
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert wire.requests[1][2]["range"] != "bytes=0-" and wire.requests[1][2]["if-range"] == etag
    assert seen[-1] == (len(body), len(body))


def test_a_download_goes_on_in_a_later_process(wire: Wire, tmp_path: Path) -> None:
    body = b"0123456789"
    etag = f'"{hashlib.sha256(body).hexdigest()}"'
    (tmp_path / "model.onnx.part").write_bytes(body[:4])
    (tmp_path / "model.onnx.part.etag").write_text(etag)
    wire.on(FILE, sends(body[4:], 206, ETag=etag))
    with Client(wire.url) as client:
        assert client.download("m", "1", "model.onnx", tmp_path / "model.onnx").read_bytes() == body


def test_a_file_that_changed_meanwhile_is_loaded_anew(wire: Wire, tmp_path: Path) -> None:
    body = b"the new file"
    (tmp_path / "model.onnx.part").write_bytes(b"the old file, which was longer")
    (tmp_path / "model.onnx.part.etag").write_text('"old"')
    wire.on(FILE, sends(body, 200, ETag=f'"{hashlib.sha256(body).hexdigest()}"'))
    with Client(wire.url) as client:
        assert client.download("m", "1", "model.onnx", tmp_path / "model.onnx").read_bytes() == body


def test_a_connection_that_broke_after_the_last_byte_needs_no_more_bytes(wire: Wire, tmp_path: Path) -> None:
    body = b"all of it"
    (tmp_path / "model.onnx.part").write_bytes(body)
    (tmp_path / "model.onnx.part.etag").write_text(f'"{hashlib.sha256(body).hexdigest()}"')
    wire.on(FILE, sends(b"", 416))
    with Client(wire.url) as client:
        assert client.download("m", "1", "model.onnx", tmp_path / "model.onnx").read_bytes() == body


def test_a_damaged_download_is_refused_and_leaves_nothing(wire: Wire, tmp_path: Path) -> None:
    wire.on(FILE, sends(b"damaged", ETag=f'"{hashlib.sha256(b"sent").hexdigest()}"'))
    with Client(wire.url) as client, pytest.raises(DownloadError, match="arrived damaged"):
        client.download("m", "1", "model.onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_sent_as_a_bearer_token(wire: Wire) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        says({"key": request.headers["Authorization"]})(request)

    wire.on("/api/v1/catalog", answer)
    with Client(wire.url, "secret") as client:
        assert client.catalog() == {"key": "Bearer secret"}
