"""Why a queued job does not run: in words, and while somebody watches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from client.view import JobView
from dsd_core.errors import DsdError

Json = dict[str, Any]
LOOK_S = 3.0
QUEUED = (None, "queued")  # None: no event has told of the status yet


def waits_for(job: Json) -> str | None:
    """What a queued job waits for, in a few words; None for any other job."""
    waiting = job.get("waiting_for")
    if waiting == "needs":
        missing = [f"{need['id']} ({need['status']})" for need in job["needs"] if need["status"] != "succeeded"]
        return f"needs {', '.join(missing)}"
    if waiting == "back_off":
        return f"next try after {job['not_before']}"
    if waiting == "slot":
        return f"place {job['queue_position']} in the queue" if job.get("queue_position") else "waits for its turn"
    return _WORDS.get(waiting, waiting) if waiting else None


_WORDS = {
    "paused": "paused",
    "worker": "no worker that is there has what it asks for",
    "broker": "the broker does not answer",
}


@contextmanager
def told(view: JobView, look: Callable[[], Json], every_s: float = LOOK_S) -> Iterator[None]:
    """While the view's job is queued, show what it waits for; `look` asks the service for the job."""
    ended = Event()

    def tell() -> None:
        while not ended.is_set():
            if view.status in QUEUED:
                _tell_once(view, look)
            ended.wait(every_s)

    thread = Thread(target=tell, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell_once(view: JobView, look: Callable[[], Json]) -> None:
    try:
        words = waits_for(look())
    except DsdError:  # whoever follows the events says that the service is away
        return
    if words is not None and view.status in QUEUED:
        view.waits(words)
