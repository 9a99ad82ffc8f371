"""A job's history: pages of it, and the stream that goes on until the job ends, over a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from api.routes.events import stream
from client.http import Client
from tests.api.conftest import JOBS, Service, problem_in
from tests.client.scenes import progress, result, run

STREAM = {"Accept": "text/event-stream"}
DEADLINE_S = 20.0


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    """The service of `service`, behind a real socket."""
    with served(service) as found:
        yield found


@contextmanager
def served(service: Service) -> Iterator[str]:
    config = uvicorn.Config(service.http.app, lifespan="off", ws="none", log_level="warning")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)
    assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sent(text: str) -> list[dict[str, str]]:
    """Server-sent events as dictionaries of their fields; comments are left out."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    found = [dict(line.split(": ", 1) for line in block if not line.startswith(":")) for block in blocks]
    return [event for event in found if event.keys() - {"retry"}]


def get(url: str, job_id: str, query: str = "", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{url}{JOBS}/{job_id}/events{query}", headers=STREAM | named, timeout=DEADLINE_S)


# --- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_of_events_leads_to_the_next(service_on_each: Service) -> None:
    claim = service_on_each.succeed()
    path = f"{JOBS}/{claim.job_id}/events"
    seen: list[dict[str, Any]] = []
    more, after = True, 0
    while more:
        page = service_on_each.http.get(f"{path}?limit=4&after={after}").json()
        seen += page["data"]
        more, after = page["has_more"], page["next_cursor"]
    assert [event["seq"] for event in seen] == list(range(1, len(run()) + 4))
    assert [event["type"] for event in seen[:3]] == ["status", "status", "started"]
    assert seen[-1]["data"]["to"] == "succeeded"
    assert set(seen[0]) == {"seq", "at", "type", "data"} and seen[0]["at"].endswith("Z")


def test_after_the_last_event_the_cursor_stays(service: Service) -> None:
    job_id = service.submit()["id"]
    page = service.http.get(f"{JOBS}/{job_id}/events?after=1").json()
    assert page == {"data": [], "has_more": False, "next_cursor": 1}


def test_events_can_be_chosen_by_type(service: Service) -> None:
    claim = service.succeed()
    page = service.http.get(f"{JOBS}/{claim.job_id}/events?type=status&type=finished&limit=2").json()
    assert [event["type"] for event in page["data"]] == ["status", "status"]
    rest = service.http.get(f"{JOBS}/{claim.job_id}/events?type=status&type=finished&after={page['next_cursor']}")
    assert [event["type"] for event in rest.json()["data"]] == ["finished", "status"]


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001", "after=99999999999", "type=%00"])
def test_a_wrong_place_to_begin_is_named(service: Service, query: str) -> None:
    job_id = service.submit()["id"]
    problem_in(service.http.get(f"{JOBS}/{job_id}/events?{query}"), 422, "invalid_request")


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_of_an_ended_job_is_its_history_and_an_end(service: Service, url: str) -> None:
    claim = service.succeed()
    answer = get(url, claim.job_id)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    *events, end = sent(answer.text)
    assert [int(event["id"]) for event in events] == list(range(1, len(run()) + 4))
    page = service.http.get(f"{JOBS}/{claim.job_id}/events?limit=1000").json()["data"]
    assert [json.loads(event["data"]) for event in events] == page
    assert [event["event"] for event in events] == [event["type"] for event in page]
    assert end["event"] == "end" and "id" not in end
    assert json.loads(end["data"])["status"] == "succeeded"


def test_a_stream_tells_what_happens_while_it_is_watched(service: Service, url: str) -> None:
    claim = service.run()
    told: list[int] = []

    def watch() -> None:
        with Client(url) as client:
            for event in client.events(claim.job_id):
                told.append(event["seq"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    until(lambda: told == [1, 2])
    service.say(claim, run()[:3])
    until(lambda: told == [1, 2, 3, 4, 5])
    service.finish(claim, result=result())
    watcher.join(DEADLINE_S)
    assert told == [1, 2, 3, 4, 5, 6] and not watcher.is_alive()


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [("", {"Last_Event_ID": "5"}, 6), ("?after=7", {}, 8), ("?after=3", {"Last_Event_ID": "9"}, 10)],
)
def test_a_stream_goes_on_where_it_broke(
    service: Service, url: str, query: str, headers: dict[str, str], first: int
) -> None:
    claim = service.succeed()
    *events, end = sent(get(url, claim.job_id, query, **headers).text)
    assert [int(event["id"]) for event in events] == list(range(first, len(run()) + 4))
    assert end["event"] == "end"


def test_a_stream_that_has_seen_everything_ends_at_once(service: Service, url: str) -> None:
    claim = service.succeed()
    assert [event["event"] for event in sent(get(url, claim.job_id, Last_Event_ID="999").text)] == ["end"]


def test_a_long_history_is_streamed_without_gaps(service: Service, url: str) -> None:
    claim = service.run()
    service.say(claim, [progress("student", step, 500, step) for step in range(1, 501)])
    service.finish(claim, result=result())
    *events, _ = sent(get(url, claim.job_id).text)
    assert [int(event["id"]) for event in events] == list(range(1, 504))


def test_a_stream_can_hold_some_types_only(service: Service, url: str) -> None:
    claim = service.succeed()
    assert {event["event"] for event in sent(get(url, claim.job_id, "?type=evaluated").text)} == {"evaluated", "end"}


def test_a_stream_of_an_unknown_job_or_from_a_wrong_place_is_a_problem(service: Service, url: str) -> None:
    problem_in(get(url, "nothere"), 404, "job_not_found")
    job_id = service.submit()["id"]
    problem = problem_in(get(url, job_id, Last_Event_ID="abc"), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "header:Last-Event-ID"


def test_many_watchers_hold_no_threads(service: Service, url: str) -> None:
    """More streams than the server has threads, and it still answers."""
    claim = service.run()
    with httpx.Client(timeout=DEADLINE_S, limits=httpx.Limits(max_connections=100)) as http:
        streams = [http.stream("GET", f"{url}{JOBS}/{claim.job_id}/events", headers=STREAM) for _ in range(60)]
        answers = [stream.__enter__() for stream in streams]
        try:
            assert all(answer.status_code == 200 for answer in answers)
            assert http.get(f"{url}{JOBS}/{claim.job_id}").status_code == 200
        finally:
            for stream in streams:
                stream.__exit__(None, None, None)


def test_a_silent_stream_says_that_it_is_still_there(service: Service) -> None:
    job_id = service.submit()["id"]

    async def first_chunks() -> list[bytes]:
        chunks = stream(service.engine, job_id, 1, poll_s=0.01, heartbeat_s=0.05)
        try:
            with anyio.fail_after(DEADLINE_S):
                return [await anext(chunks) for _ in range(3)]
        finally:
            await chunks.aclose()

    opening, *heartbeats = anyio.run(first_chunks)
    assert b"retry: 2000" in opening
    assert heartbeats == [b": still here\n\n"] * 2


def test_a_stream_outlives_a_database_that_is_away_for_a_moment(service: Service) -> None:
    claim = service.run()

    async def watch() -> list[bytes]:
        chunks = stream(service.engine, claim.job_id, 2, poll_s=0.01, heartbeat_s=0.05)
        opening = await anext(chunks)
        with service.engine.execution_options(dsd_write=True).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE job_events RENAME TO elsewhere")
        silence = await anext(chunks)
        with service.engine.execution_options(dsd_write=True).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO job_events")
        service.finish(claim, result=result())
        return [opening, silence, *[chunk async for chunk in chunks if not chunk.startswith(b":")]]

    _, silence, *rest = anyio.run(watch)
    assert silence == b": still here\n\n"
    assert [event["event"] for event in sent(b"".join(rest).decode())] == ["status", "end"]
