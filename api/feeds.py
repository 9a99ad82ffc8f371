"""The live end of jobs' histories: one look at the database for all jobs that are watched, whoever watches them.

A feed keeps a job's newest events as they are sent, within bounds, and its watchers go along it at their own pace. One
that is further back than the feed reaches, because it came late or reads slowly, reads from the database until it has
caught up. So no watcher waits for another, and as `seq` has no gaps, none misses an event.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from itertools import islice
from typing import NamedTuple
from weakref import WeakValueDictionary

import anyio
from fastapi.sse import format_sse_event
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from api.errors import DATABASE_AWAY
from api.schemas import JobEvent
from jobs import db, store
from jobs.status import TERMINAL
from jobs.store import Head
from jobs.tables import JobEventRow

log = logging.getLogger(__name__)

POLL_S = 0.2
HEARTBEAT_S = 15.0
RECONNECT_MS = 2000
BATCH = 200  # events of one query
RECENT = 200  # events that a feed keeps
RECENT_BYTES = 256 * 1024
PART_BYTES = 128 * 1024  # that a watcher is sent at once, or one event


class Told(NamedTuple):
    """An event as watchers get it."""

    seq: int
    type: str
    text: bytes


class Part(NamedTuple):
    """What a watcher is sent next, and the last event it then knows or has no wish for."""

    upto: int
    text: bytes


class Seen(NamedTuple):
    """What a look found of a job after the events that were known."""

    events: list[Told]
    end: bytes | None
    """What `event: end` says, once the job has ended and `events` are its last."""


class Feed:
    """The newest events of one job, up to `head`."""

    def __init__(self, job_id: str, head: int, end: bytes | None) -> None:
        self.job_id, self.head, self.end = job_id, head, end
        self.changed = asyncio.Event()
        self.broken = False
        self._recent: deque[Told] = deque()
        self._bytes = 0

    def add(self, seen: Seen) -> None:
        """Take what has come, forget what is old, and wake the watchers."""
        for told in seen.events:
            self._recent.append(told)
            self._bytes += len(told.text)
            self.head = told.seq
        while len(self._recent) > RECENT or self._bytes > RECENT_BYTES:
            self._bytes -= len(self._recent.popleft().text)
        self.end = seen.end
        if seen.events or seen.end is not None:
            self._wake()

    def give_up(self) -> None:
        """Let the watchers' streams break."""
        self.broken = True
        self._wake()

    def after(self, seq: int, types: Collection[str] | None) -> Part | None:
        """What comes after `seq`; None where the feed does not reach back so far."""
        first = self._recent[0].seq if self._recent else self.head + 1
        if seq + 1 < first:
            return None
        return _part(islice(self._recent, seq + 1 - first, None), types, max(seq, self.head))

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Feeds:
    """The feeds of all jobs that are watched through this process; used in one event loop."""

    def __init__(self, engine: Engine, *, poll_s: float = POLL_S) -> None:
        self._engine, self._poll_s = engine, poll_s
        # Held by their watchers alone: a stream that is cut while it sends is not closed but collected.
        self._feeds: WeakValueDictionary[str, Feed] = WeakValueDictionary()
        self._polling: asyncio.Task[None] | None = None

    async def stream(
        self, head: Head, after: int, types: Collection[str] | None = None, *, heartbeat_s: float = HEARTBEAT_S
    ) -> AsyncGenerator[bytes]:
        """The events of a job after `after` as server-sent events, until the job has ended.

        A watcher costs no thread, and once it has caught up no query. While the database is away the stream stays open.
        """
        yield format_sse_event(comment=f"job {head.id}", retry=RECONNECT_MS)
        spoke = time.monotonic()
        feed = self._feed(head)
        while not feed.broken:
            changed = feed.changed
            part = feed.after(after, types) or await self._earlier(feed, after, types)
            after = part.upto
            if part.text:
                yield part.text
                spoke = time.monotonic()
            elif time.monotonic() - spoke >= heartbeat_s:
                yield format_sse_event(comment="still here")
                spoke = time.monotonic()
            if after < feed.head:
                continue
            if feed.end is not None:
                yield feed.end
                return
            with anyio.move_on_after(spoke + heartbeat_s - time.monotonic()):
                await changed.wait()
        raise RuntimeError(f"The history of job {head.id} cannot be read; the log says why.")

    def _feed(self, head: Head) -> Feed:
        feed = self._feeds.get(head.id)
        if feed is None:
            feed = self._feeds[head.id] = Feed(head.id, head.last_seq, _end(head))
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        return feed

    async def _earlier(self, feed: Feed, after: int, types: Collection[str] | None) -> Part:
        """What a feed does not reach back to."""
        try:
            return await run_in_threadpool(_read, self._engine, feed.job_id, after, feed.head, types)
        except DATABASE_AWAY:
            await anyio.sleep(self._poll_s)
            return Part(after, b"")

    async def _poll(self) -> None:
        try:
            while known := {feed.job_id: feed.head for feed in self._feeds.values() if feed.end is None}:
                if not await self._look(known):
                    await anyio.sleep(self._poll_s)
        except Exception:
            log.exception("api.feeds_broken")
            for feed in self._feeds.values():
                feed.give_up()
            self._feeds.clear()

    async def _look(self, known: Mapping[str, int]) -> bool:
        """Bring feeds to what the database has now; whether it may have more."""
        try:
            seen = await run_in_threadpool(_look, self._engine, known)
        except DATABASE_AWAY:
            return False
        for job_id, found in seen.items():
            feed = self._feeds.get(job_id)
            if feed is not None:
                feed.add(found)
        return any(len(found.events) == BATCH for found in seen.values())


def job_event(row: JobEventRow) -> JobEvent:
    """The row as people read it."""
    return JobEvent(seq=row.seq, at=row.at, type=row.type, data=row.data)


def _look(engine: Engine, known: Mapping[str, int]) -> dict[str, Seen]:
    """What there is of these jobs after the last event that is known of each; nothing of a job without news.

    A row is read before its events: where it says that the job has ended, no event can come any more.
    """
    found = {}
    with db.reading(engine) as s:
        for head in store.heads(s, known):
            end = _end(head)
            if end is None and head.last_seq == known[head.id]:
                continue
            events = [_told(row) for row in store.events_after(s, head.id, known[head.id], BATCH)]
            found[head.id] = Seen(events, end if len(events) < BATCH else None)
    return found


def _read(engine: Engine, job_id: str, after: int, upto: int, types: Collection[str] | None) -> Part:
    """A part of the history after `after`; all up to `upto` is there."""
    with db.reading(engine) as s:
        rows = store.events_after(s, job_id, after, BATCH, types)
    last = rows[-1].seq if len(rows) == BATCH else max(upto, rows[-1].seq if rows else upto)
    return _part(map(_told, rows), None, last)


def _part(events: Iterable[Told], types: Collection[str] | None, upto: int) -> Part:
    """As many of these events as a watcher is sent at once; all of them lead up to `upto`."""
    texts: list[bytes] = []
    size = 0
    for told in events:
        if types is None or told.type in types:
            texts.append(told.text)
            size += len(told.text)
            if size >= PART_BYTES:
                return Part(told.seq, b"".join(texts))
    return Part(upto, b"".join(texts))


def _told(row: JobEventRow) -> Told:
    event = job_event(row)
    text = format_sse_event(id=str(event.seq), event=event.type, data_str=event.model_dump_json())
    return Told(row.seq, row.type, text)


def _end(head: Head) -> bytes | None:
    """What `event: end` says; None while the job has not ended."""
    return format_sse_event(event="end", data_str=json.dumps(head._asdict())) if head.status in TERMINAL else None
