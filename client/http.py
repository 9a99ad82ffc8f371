"""The service over HTTP. Requests that a broken connection interrupts are repeated where repeating is harmless.

Client.validate, submit, job, jobs, logs, metrics              jobs
Client.cancel, pause, resume, stop, change, retry, clone      what is asked of a job that exists
Client.events                                                 a job's history, live
Client.workers, drain, undrain                                workers
Client.catalog, models, files, download                       what can be asked for, and what came out
Client.storage, prune                                         what is kept, and freeing it
Client.signals, verify_signals, prune_signals                 the same of what teachers said about datasets
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from client.download import fetch
from client.errors import ApiError, ServiceAway
from client.home import default_url

Json = dict[str, Any]
TRIES = 4
PATIENCE_S = 60.0  # a stream of events waits this long for a service that was restarted
PRUNE_S = 600.0  # every file of the storage is looked at
SILENCE_S = 45.0  # the service sends a comment every 15 s, so a longer silence is a dead connection


class Client:
    """A connection to one service, by default that of DSD_URL (or the local `dsd up`) with the key of DSD_API_KEY."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = (base_url or default_url()).rstrip("/")
        key = api_key or os.environ.get("DSD_API_KEY")
        self._http = httpx.Client(
            base_url=f"{self.base_url}/api/v1",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def validate(self, spec: Json) -> Json:
        """The spec with every default filled, findings about it and estimates; nothing is queued. Raises ApiError."""
        return self._json("POST", "/jobs/validate", json=spec)

    def submit(self, spec: Json, *, key: str | None = None) -> Json:
        """Queue a job and return it. The idempotency key makes a repeated request return the job of the first one."""
        return self._json("POST", "/jobs", json=spec, headers=_once(key))

    def job(self, job_id: str) -> Json:
        return self._json("GET", f"/jobs/{_part(job_id)}")

    def jobs(self, *, page: int = 100, **filters: str | None) -> Iterator[Json]:
        """Jobs, the newest first. Filters: status, name, kind, group, label (`key:value`)."""
        query: Json = {name: value for name, value in filters.items() if value is not None} | {"limit": page}
        while True:
            answer = self._json("GET", "/jobs", params=query)
            yield from answer["data"]
            if not answer.get("next_cursor"):
                return
            query["after"] = answer["next_cursor"]

    def cancel(self, job_id: str) -> Json:
        return self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Json:
        """Let a job wait until it is resumed; a running one writes a checkpoint first."""
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Json:
        return self._ask(job_id, "resume")

    def stop(self, job_id: str) -> Json:
        """End a job's training now; the best student so far is its result."""
        return self._ask(job_id, "stop")

    def change(self, job_id: str, **wishes: Any) -> Json:
        """Change `priority`, or single `labels`, of which None removes one."""
        return self._json("PATCH", f"/jobs/{_part(job_id)}", json=wishes)

    def retry(self, job_id: str, *, key: str | None = None) -> Json:
        """Do a job that ended without success again, from its checkpoints; the new job. `key` as for `submit`."""
        return self._ask(job_id, "retry", headers=_once(key))

    def clone(self, job_id: str, patch: Json | None = None, *, key: str | None = None) -> Json:
        """Queue a new job with this one's spec and an RFC 7396 merge patch of it. `key` as for `submit`."""
        return self._ask(job_id, "clone", json=patch or {}, headers=_once(key))

    def logs(self, job_id: str, tail: int | None = None) -> str:
        """What the training process printed; with `tail`, the last lines of it."""
        query = {} if tail is None else {"tail": tail}
        return self._send("GET", f"/jobs/{_part(job_id)}/logs", params=query).text

    def metrics(self, job_id: str) -> Json:
        return self._json("GET", f"/jobs/{_part(job_id)}/metrics")

    def workers(self) -> list[Json]:
        workers: list[Json] = self._json("GET", "/workers")["data"]
        return workers

    def drain(self, name: str, *, release: bool = False) -> Json:
        """Let a worker take no further job; with `release` it gives back the one it has."""
        query = {"release": "true"} if release else {}
        return self._json("POST", f"/workers/{_part(name)}/drain", params=query)

    def undrain(self, name: str) -> Json:
        return self._json("POST", f"/workers/{_part(name)}/undrain")

    def catalog(self, search: str = "") -> Json:
        """What a spec may name; of the encoders, those with `search` in their name."""
        return self._json("GET", "/catalog", params={"search": search} if search else {})

    def models(self) -> list[Json]:
        """Registered models with their versions, aliases and files."""
        models: list[Json] = self._json("GET", "/models")["data"]
        return models

    def storage(self) -> Json:
        """What the service's storage holds, and the rules by which it is freed."""
        return self._json("GET", "/storage", timeout=PRUNE_S)

    def prune(self, *, dry_run: bool = False) -> Json:
        """Delete what the rules let go, or only say what that is."""
        return self._json("POST", "/storage/prune", params={"dry_run": dry_run}, timeout=PRUNE_S)

    def signals(self) -> Json:
        """The teachers' signals that are kept for further jobs."""
        return self._json("GET", "/signals", timeout=PRUNE_S)

    def verify_signals(self, key: str | None = None) -> Json:
        """Hold every record, of one entry or of all, against its checksum; damaged ones are forgotten."""
        return self._json("POST", "/signals/verify", params=_given(key=key), timeout=PRUNE_S)

    def prune_signals(
        self,
        *,
        key: str | None = None,
        older_than_days: float | None = None,
        to_bytes: str | None = None,
        dry_run: bool = False,
    ) -> Json:
        """Delete entries that no job uses: of this key, not used for so many days, until so many bytes (`5GB` can be
        written) are left; without any of these, what is beyond the store's limit."""
        query = _given(key=key, older_than_days=older_than_days, to_bytes=to_bytes, dry_run=dry_run)
        return self._json("POST", "/signals/prune", params=query, timeout=PRUNE_S)

    def ready(self) -> bool:
        """True if the service answers and can take jobs."""
        try:
            return self._http.get(f"{self.base_url}/readyz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def events(self, job_id: str, after: int = 0) -> Iterator[Json]:
        """The job's history after event `after`, then live until it ends: dictionaries with seq, at, type and data.

        A broken connection is opened again where it broke. Raises ServiceAway when the service stays away.
        """
        seen, deadline = after, time.monotonic() + PATIENCE_S
        while True:
            try:
                for kind, event in self._stream(f"/jobs/{_part(job_id)}/events", seen):
                    deadline = time.monotonic() + PATIENCE_S
                    if kind == "end":
                        return
                    if event["seq"] > seen:
                        seen = event["seq"]
                        yield event
            except (httpx.TransportError, ServiceAway) as error:
                if time.monotonic() > deadline or (isinstance(error, httpx.ConnectError) and seen == after == 0):
                    raise self._away() from error
            time.sleep(0.5)

    def files(self, name: str, version: str) -> Json:
        """A registered version by its number or alias, with the list of its files."""
        return self._json("GET", f"/models/{_part(name)}/versions/{_part(version)}")

    def download(
        self, name: str, version: str, file: str, to: Path, progress: Callable[[int, int | None], None] | None = None
    ) -> Path:
        """Save one file of a model as `to`, verified; a download that was interrupted goes on where it stopped.

        `progress` is called with bytes so far and bytes in all. Raises ApiError, DownloadError or ServiceAway.
        """
        path = f"/models/{_part(name)}/versions/{_part(version)}/files/{quote(file)}"
        return fetch(self._http, path, to, progress or (lambda done, total: None), self._away)

    def _stream(self, path: str, seen: int) -> Iterator[tuple[str, Json]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(seen)} if seen else {})
        with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(SILENCE_S, connect=10.0)) as answer:
            if answer.status_code in (502, 503, 504):
                raise ServiceAway(self.base_url)
            _raise_for(answer)
            yield from parse_events(answer.iter_lines())

    def _ask(self, job_id: str, wish: str, **request: Any) -> Json:
        return self._json("POST", f"/jobs/{_part(job_id)}/{wish}", **request)

    def _json(self, method: str, path: str, **request: Any) -> Json:
        answer = self._send(method, path, **request)
        try:
            body: Json = answer.json()
        except ValueError as error:
            raise ApiError(answer.status_code, {"detail": f"{answer.url} answers, but not in JSON."}) from error
        return body

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Every request here may be repeated: most by their nature, those that queue a job by their idempotency key."""
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, **request)
                if answer.status_code not in (502, 503, 504) or attempt == TRIES:
                    _raise_for(answer)
                    return answer
            except httpx.ConnectError as error:
                if attempt in (1, TRIES):
                    raise self._away() from error
            except httpx.TransportError as error:
                if attempt == TRIES:
                    raise self._away() from error
            time.sleep(0.3 * 2**attempt)
        raise self._away()

    def _away(self) -> ServiceAway:
        return ServiceAway(self.base_url)


def parse_events(lines: Iterator[str]) -> Iterator[tuple[str, Json]]:
    """Server-sent events as (event, decoded data). Comments and events without data are left out."""
    kind = "message"
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data or kind == "end":
                yield kind, json.loads("\n".join(data) or "{}")
            kind, data = "message", []
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)


def _raise_for(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    answer.read()
    raise ApiError.of(answer)


def _once(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _given(**query: Any) -> Json:
    return {name: value for name, value in query.items() if value is not None}


def _part(text: str) -> str:
    return quote(text, safe="")
