"""A whole service on one machine for one case: real servers, real processes, and a ledger of what it acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx

from jobs import db
from jobs.settings import Settings
from jobs.status import TERMINAL, Status
from tests.faults import oracles
from tests.faults.golden import Golden
from tests.servers import Postgres, Valkey
from tests.worker.fleet import QUICK, REAL_TASKS, Fleet, Process, free_port
from tests.worker.service import Service, scripted, until

ENDS_S = 120.0


@dataclass(kw_only=True)
class Site(Service):
    """Jobs are submitted here, and everything submitted is answered for at the end of the case (`check`)."""

    fleet: Fleet
    valkey: Valkey
    postgres: Postgres | None  # None on SQLite
    golden: Callable[[], Golden]  # made when it is first asked for
    ledger: dict[str, Collection[Status]] = field(default_factory=dict)
    students: list[str] = field(default_factory=list)  # jobs with the real training process
    answers: list[oracles.Answer] = field(default_factory=list)
    http: httpx.Client | None = None
    outage: bool = False

    def submit(self, script: str, **fields: Any) -> str:
        """Queue a job that follows a script, and must succeed."""
        job = super().submit(script, **fields)
        self.ledger[job] = {Status.SUCCEEDED}
        return job

    def submit_real(self) -> str:
        """Queue a job that trains: `golden.SPEC`."""
        job = self.queue(self.golden().spec)
        self.ledger[job] = {Status.SUCCEEDED}
        self.students.append(job)
        return job

    def post(self, script: str = "finish", **headers: str) -> httpx.Response:
        """Submit over HTTP; what is acknowledged goes into the ledger."""
        answer = self.api.post("/api/v1/jobs", json=scripted(script), headers=headers)
        if answer.is_success:
            self.ledger[answer.json()["id"]] = {Status.SUCCEEDED}
        return answer

    def expect(self, job: str, *ends: Status) -> None:
        """This job must end otherwise than with success."""
        self.ledger[job] = set(ends)

    def status(self, job: str) -> Status:
        return Status(self.row(job).status)

    def all_end(self, timeout_s: float = ENDS_S) -> None:
        until(lambda: all(self.status(job) in TERMINAL for job in self.ledger), timeout_s)

    @property
    def api(self) -> httpx.Client:
        """The API, started by the first use; its answers are remembered."""
        if self.http is None:
            self.start_api()
        assert self.http is not None
        return self.http

    def start_api(self, **options: Any) -> Process:
        """Start `uvicorn` with the API; returns when it answers."""
        if self.http:
            self.http.close()
        port = free_port()
        process = self.fleet.api(port, **options)
        until(lambda: process.poll() is not None or _answers(port))
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, event_hooks={"response": [self._remember]}
        )
        return process

    @contextmanager
    def something_off(self) -> Iterator[None]:
        """Meanwhile the API may say 503."""
        self.outage = True
        yield
        self.outage = False

    def check(self) -> None:
        """All five oracles. Everything the case switched off runs again."""
        self.all_end()
        until(lambda: not oracles.job_processes(self.ledger), 10)
        broken = list(self.broken())
        assert not broken, "\n".join(broken)

    def broken(self) -> Iterator[str]:
        """What the oracles have to say."""
        log = self.fleet.log("api") if self.http else ""
        yield from oracles.broken_histories(self.engine)
        yield from oracles.wrong_ends(self.engine, self.ledger)
        yield from self._weights()
        yield from oracles.left_behind(self.engine, self.settings.storage_dir / "runs", self.ledger)
        yield from oracles.wrong_answers(self.answers, log)
        if self.http:
            yield from self._readiness()

    def _weights(self) -> Iterator[str]:
        if self.students:
            yield from oracles.other_weights(self.golden().digest, {job: self._student(job) for job in self.students})

    def _student(self, job: str) -> Path:
        return self.folder(job) / "student" / "model.safetensors"

    def _readiness(self) -> Iterator[str]:
        said = self.api.get("/readyz").json()
        if (said["database"], said["broker"]) != ("ok", "ok"):
            yield f"everything runs, and /readyz says {said}"

    def _remember(self, response: httpx.Response) -> None:
        request = f"{response.request.method} {response.request.url.path}"
        retry_after = response.headers.get("Retry-After")
        self.answers.append(oracles.Answer(request, response.status_code, self.outage, retry_after))


def no_training() -> NoReturn:
    raise AssertionError("this service was started without a job whose weights are known")


@contextmanager
def a_site(
    folder: Path, valkey: Valkey, database_url: str, golden: Callable[[], Golden] = no_training
) -> Iterator[Site]:
    """A service with quick timers on servers that run; its processes end with it."""
    settings = Settings(home=folder, database_url=database_url, broker_url=valkey.url, mlflow_url=None, **QUICK)
    db.migrate(database_url)
    engine = db.make_engine(database_url)
    fleet = Fleet(settings, folder)
    site = Site(settings, engine, fleet=fleet, valkey=valkey, postgres=None, golden=golden)
    try:
        yield site
    finally:
        site.fleet.end()
        if site.http:
            site.http.close()
        engine.dispose()


def worker_with_training(site: Site, name: str, **options: Any) -> Process:
    """A worker whose child is `python -m dsd_core run`."""
    return site.fleet.worker(name, app=REAL_TASKS, **options)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").is_success
    except httpx.TransportError:
        return False
