"""A service reduced to what a worker needs: a database, run folders, and jobs that follow a script."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from dsd_core.spec import JobSpec, parse_spec
from jobs import db, store
from jobs.resources import Offer
from jobs.settings import Settings
from jobs.status import Drain, Reason
from jobs.tables import JobEventRow, JobRow, WorkerRow
from worker import run
from worker.board import Board
from worker.database import Database
from worker.slot import Slot

OFFER = Offer("test", "here", "cpu", memory_gib=1000.0)
SCRIPTED = (sys.executable, str(Path(__file__).parent / "scripted_child.py"))


def until(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first true value of `what`."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.03)
    return value


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def scripted(script: str) -> dict[str, Any]:
    """The spec of a job that follows a script."""
    return {
        "kind": "train",
        "name": "scripted",
        "dataset": {"name": "streets"},
        "student": {"network": "espnet"},
        "labels": {"script": script},
    }


@dataclass
class Service:
    """The parts of a service that a worker needs, and short ways to ask about them."""

    settings: Settings
    engine: Engine
    command: Sequence[str] = SCRIPTED

    def submit(self, script: str, *, max_attempts: int = 3, **fields: Any) -> str:
        return self.queue(parse_spec(scripted(script) | fields), max_attempts)

    def queue(self, spec: JobSpec, max_attempts: int = 3) -> str:
        with db.begin(self.engine) as s:
            return store.submit(s, spec, max_attempts=max_attempts)[0].id

    def row(self, job_id: str) -> JobRow:
        with db.reading(self.engine) as s:
            row = store.get(s, job_id)
        assert row is not None
        return row

    def events(self, job_id: str, *types: str) -> list[JobEventRow]:
        with db.reading(self.engine) as s:
            return store.events_after(s, job_id, 0, 100_000, types or None)

    def ask(self, request: Callable[[Session, str], JobRow], job_id: str) -> None:
        with db.begin(self.engine) as s:
            request(s, job_id)

    def workers(self) -> list[WorkerRow]:
        with db.reading(self.engine) as s:
            return store.list_workers(s)

    def drain(self, worker: str, how: Drain | None) -> None:
        with db.begin(self.engine) as s:
            store.set_drain(s, worker, how)

    def cancel(self, job_id: str) -> None:
        self.ask(store.request_cancel, job_id)

    def slot(self, board: Board | None = None) -> Slot:
        return Slot(self.settings, OFFER, board or Board(), self.command)

    def run(self, job_id: str, board: Board | None = None) -> Reason | None:
        """One attempt, by a worker of this process; None also where there is nothing to claim."""
        database = Database(self.settings.db_url, longest_delay_s=self.settings.heartbeat_s)
        claim = database(lambda s: store.claim_next(s, OFFER, self.settings.lease_s))
        assert claim is None or claim.job_id == job_id
        try:
            return claim and run.run_claim(self.slot(board), database, claim)
        finally:
            database.close()

    def folder(self, job_id: str) -> Path:
        return self.settings.run_dir(job_id)

    def pids(self, job_id: str) -> list[int]:
        """The children started for the job so far."""
        path = self.folder(job_id) / "tries.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def has_noted(self, job_id: str, message: str) -> bool:
        return any(event.data["message"] == message for event in self.events(job_id, "note"))


@dataclass
class RunningWorker:
    """An attempt that runs in a thread of this process."""

    board: Board
    thread: Thread
    ended: list[Reason | None]

    def reason(self, timeout_s: float = 30.0) -> Reason | None:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the worker does not end"
        return self.ended[0]
