"""A job's history: pages of it, and the stream that goes on until the job ends, over a real server."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from sqlalchemy.event import listen

from api.feeds import PART_BYTES, RECENT, RECENT_BYTES, Feed, Feeds, Part, Seen, Told
from api.routes.jobs import head_of
from client.http import Client
from tests.api.conftest import JOBS, Service, problem_in, serving
from tests.client.scenes import AT, progress, result, run

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


def watched(service: Service, job_id: str, after: int) -> AsyncGenerator[bytes]:
    """A stream that looks and says that it is still there more often than that of the service."""
    return Feeds(service.engine, poll_s=0.01).stream(head_of(service.engine, job_id), after, heartbeat_s=0.05)


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


@contextmanager
def watching(url: str, job_id: str, afters: list[int]) -> Iterator[list[list[int]]]:
    """A watcher after each of these events; the `seq` of all that each is told. They go when the job has ended."""
    told: list[list[int]] = [[] for _ in afters]

    def follow(number: int) -> None:
        with Client(url) as client:
            for event in client.events(job_id, afters[number]):
                told[number].append(event["seq"])

    threads = [threading.Thread(target=follow, args=(number,), daemon=True) for number in range(len(afters))]
    for thread in threads:
        thread.start()
    yield told
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_an_event_is_read_once_for_all_watchers_and_none_of_them_reads_while_nothing_happens(
    service: Service, url: str
) -> None:
    claim, reads = service.run(), reads_of_events(service)
    with watching(url, claim.job_id, [0] * 15) as told:
        until(lambda: told == [[1, 2]] * 15)
        reads.clear()
        for number in range(1, 6):
            service.say(claim, [progress("student", number, 9, number)], first=number)
            until(lambda now=number: all(len(seen) == 2 + now for seen in told))
        assert len(reads) == 5
        service.finish(claim, result=result())
    assert told == [list(range(1, 9))] * 15


def reads_of_events(service: Service) -> list[str]:
    """The statements that read histories from now on."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("SELECT") and "FROM job_events" in statement:
            found.append(statement)

    listen(service.engine, "before_cursor_execute", note)
    return found


def test_one_look_is_for_all_jobs_that_are_watched(service: Service, url: str) -> None:
    """A job of which nobody hears anything is not read because another one has news."""
    claims, reads = [service.run(name=f"job-{number}") for number in range(4)], reads_of_events(service)
    with contextlib.ExitStack() as stack:
        told = [stack.enter_context(watching(url, claim.job_id, [0, 0])) for claim in claims]
        until(lambda: told == [[[1, 2]] * 2] * 4)
        reads.clear()
        service.say(claims[0], run()[:1])
        until(lambda: told[0] == [[1, 2, 3]] * 2)
        assert len(reads) == 1
        for claim in claims:
            service.finish(claim, result=result())
    assert told == [[[1, 2, 3, 4]] * 2, *([[[1, 2, 3]] * 2] * 3)]


def test_a_watcher_that_comes_again_is_told_all_that_it_missed(service: Service, url: str) -> None:
    """Whether others still hear of it or it is long past: after each event of a history that is going on."""
    claim = service.run()
    afters = [*range(0, RECENT + 40, 20), RECENT + 39]
    with watching(url, claim.job_id, [0]) as first:
        service.say(claim, [progress("student", step, 999, step) for step in range(1, RECENT + 39)])
        until(lambda: len(first[0]) == RECENT + 40)
        with watching(url, claim.job_id, afters) as told:
            until(lambda: all(seen and seen[-1] == RECENT + 40 for seen in told))
            service.finish(claim, result=result())
    assert told == [list(range(after + 1, RECENT + 42)) for after in afters]


def test_a_watcher_that_does_not_read_holds_up_no_other_and_misses_nothing(service: Service, url: str) -> None:
    claim = service.run()
    port = int(url.rpartition(":")[2])
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(
            f"GET {JOBS}/{claim.job_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        with watching(url, claim.job_id, [0]) as told:
            until(lambda: told == [[1, 2]])
            for first in range(1, 1001, 50):
                said = [note("x" * 20_000) for _ in range(50)]
                service.say(claim, said, first)
            until(lambda: told == [list(range(1, 1003))])
            service.finish(claim, result=result())
        slow.settimeout(DEADLINE_S)
        text = b"".join(iter(lambda: slow.recv(65536), b""))
    assert [int(seq) for seq in re.findall(rb"\nid: (\d+)\n", text)] == list(range(1, 1004))
    assert b"event: end" in text


def note(text: str) -> dict[str, Any]:
    return {"type": "note", "message": text, "at": AT}


@pytest.mark.parametrize(("size", "kept"), [(100, RECENT), (RECENT_BYTES // 4, 4), (2 * RECENT_BYTES, 0)])
def test_a_feed_keeps_the_newest_events_within_bounds(size: int, kept: int) -> None:
    feed = Feed("job", head=10, end=None)
    feed.add(Seen([Told(seq, "note", b"x" * size) for seq in range(11, 411)], None))
    assert feed.head == 410
    assert feed.after(410 - kept - 1, None) is None
    assert feed.after(410 - kept, None) is not None


def test_a_part_of_a_feed_is_bounded_and_goes_on_where_it_ends() -> None:
    feed = Feed("job", head=0, end=None)
    feed.add(Seen([Told(seq, "ab"[seq % 2], b"x" * (PART_BYTES // 4)) for seq in range(1, 9)], None))
    parts = [feed.after(seq, None) for seq in (0, 4, 8, 20)]
    assert [(part.upto, len(part.text)) for part in parts if part] == [
        (4, PART_BYTES),
        (8, PART_BYTES),
        (8, 0),
        (20, 0),
    ]
    assert feed.after(0, ["a"]) == Part(8, b"x" * PART_BYTES)


def test_a_feed_goes_with_its_last_watcher(service: Service, url: str) -> None:
    claim = service.run()
    with httpx.stream("GET", f"{url}{JOBS}/{claim.job_id}/events", headers=STREAM, timeout=DEADLINE_S) as answer:
        chunks = answer.iter_raw()  # the connection is closed when its iterator goes
        assert next(chunks)
        until(lambda: feeds() == [claim.job_id])
    until(lambda: feeds() == [])


def feeds() -> list[str]:
    gc.collect()
    return [thing.job_id for thing in gc.get_objects() if type(thing) is Feed]


def test_a_history_that_cannot_be_read_breaks_the_streams_and_those_that_come_again_go_on(
    tmp_path: Path, small_camvid: Path, postgres_url: str
) -> None:
    """An error that is none of the connection's, such as a table that is not there."""
    with serving(tmp_path, small_camvid, postgres_url) as service:
        claim = service.run()
        feeds = Feeds(service.engine, poll_s=0.01)

        async def watch() -> None:
            head = head_of(service.engine, claim.job_id)
            chunks = feeds.stream(head, 2)
            await anext(chunks)
            with service.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE jobs RENAME TO elsewhere")
            with pytest.raises(RuntimeError, match="cannot be read"):
                await anext(chunks)
            with service.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO jobs")
            service.finish(claim, result=result())
            _, *rest = [chunk async for chunk in feeds.stream(head, 2)]
            assert [event["event"] for event in sent(b"".join(rest).decode())] == ["status", "end"]

        anyio.run(watch)


def test_a_silent_stream_says_that_it_is_still_there(service: Service) -> None:
    job_id = service.submit()["id"]

    async def first_chunks() -> list[bytes]:
        chunks = watched(service, job_id, 1)
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
        chunks = watched(service, claim.job_id, 2)
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
