"""`make soak`: thousands of tiny jobs while workers are killed, the broker is emptied and the database restarted.

Prints one line of JSON: what was submitted, how it ended, and what was done to it meanwhile. Exit code 1 where a job
was lost, ended twice, or ended otherwise than it had to; stderr says which. Progress goes to stderr as well.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from dsd_core.spec import JobSpec, parse_spec
from jobs import db, store
from jobs.status import TERMINAL, Status
from jobs.tables import JobEventRow, JobRow
from tests.faults.nursery import Newborn, Nursery, nursery
from tests.faults.site import Site, a_site
from tests.servers import Postgres, ShortFolder, Valkey
from tests.worker.service import scripted

WORKERS = 4
SAY_EVERY_S = 10.0
STANDSTILL_S = 180.0  # nothing has ended for so long: what is left is lost
MAX_ATTEMPTS = 100  # each kill of a worker costs its job an attempt, and none shall fail of that
ENDS = {"succeeds": 94, "fails": 2, "crashes_once": 2, "lingers": 2}  # of 100 jobs; `lingers` is cancelled as it runs
CANCELLED_ANYWAY = 0.01  # of the others, at a moment up to this many seconds after the submission:
LATEST_CANCEL_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """Seconds between two kills of a worker, flushes of the broker, and restarts of the database."""

    kill_s: float = 1.0
    flush_s: float = 15.0
    restart_s: float = 30.0


@dataclass
class Soak:
    """The jobs, what is done to them, and what is right for each."""

    site: Site
    nursery: Nursery
    seed: int
    pace: Pace
    counts: Counter[str] = field(default_factory=Counter)
    over: Event = field(default_factory=Event)
    lingering: set[str] = field(default_factory=set)
    to_cancel: dict[str, float] = field(default_factory=dict)  # job: time.monotonic()
    workers: dict[str, Newborn] = field(default_factory=dict)

    def submit(self, jobs: int, seconds: float | None) -> None:
        """As fast as it goes."""
        dice, deadline = random.Random(self.seed), time.monotonic() + (seconds or float("inf"))
        specs = {end: parse_spec(scripted("") | {"labels": {"end": end}}) for end in ENDS}
        for number in range(jobs):
            if time.monotonic() > deadline or self.over.is_set():
                return
            (end,) = dice.choices(list(ENDS), list(ENDS.values()))
            job = self._submit_one(specs[end], f"soak-{number}")
            self.site.ledger[job] = {Status.FAILED if end == "fails" else Status.SUCCEEDED}
            if end == "lingers":
                self.lingering.add(job)
            elif dice.random() < CANCELLED_ANYWAY:
                self.to_cancel[job] = time.monotonic() + dice.uniform(0, LATEST_CANCEL_S)

    def cancel(self) -> None:
        """Until it is over: the lingering jobs that run, and others when their time has come."""
        while not self.over.wait(0.2):
            now = time.monotonic()
            running = self._insist(lambda s: s.scalars(select(JobRow.id).where(JobRow.status == Status.RUNNING)).all())
            due = [job for job, at in dict(self.to_cancel).items() if at < now]
            for job in (*self.lingering.intersection(running), *due):
                self.site.expect(job, self._insist(lambda s, job=job: _cancel(s, job)))  # type: ignore[misc]
                self.lingering.discard(job)
                self.to_cancel.pop(job, None)

    def torment(self, submitting: Future[None], cancelling: Future[None]) -> None:
        """Until every job has ended, or none has for long."""
        dice, pace = random.Random(self.seed + 1), self.pace
        every_s = {self._kill: pace.kill_s, self._flush: pace.flush_s, self._restart: pace.restart_s}
        every_s[self._say] = SAY_EVERY_S
        turns = {act: time.monotonic() + seconds for act, seconds in every_s.items()}
        ended, since = -1, time.monotonic()
        while not (submitting.done() and ended == len(self.site.ledger)) and time.monotonic() - since < STANDSTILL_S:
            for act, at in turns.items():
                if time.monotonic() >= at:
                    act(dice)
                    turns[act] = time.monotonic() + every_s[act]
            if cancelling.done() or submitting.done():
                (cancelling if cancelling.done() else submitting).result()
            if (now_ended := self._insist(_ended)) != ended:
                ended, since = now_ended, time.monotonic()
            self.over.wait(0.1)

    def start_worker(self, name: str) -> None:
        self.workers[name] = self.nursery.worker(name, self.site.fleet.logs / f"{name}.log")

    def _submit_one(self, spec: JobSpec, key: str) -> str:
        """With a key, so that a job whose acknowledgement was lost can be asked for again."""
        row, _ = self._insist(lambda s: store.submit(s, spec, max_attempts=MAX_ATTEMPTS, idempotency_key=key))
        return row.id

    def _insist(self, work: Callable[[Session], T]) -> T:
        """In one transaction, again until the database is there."""
        while True:
            try:
                with db.begin(self.site.engine) as s:
                    return work(s)
            except (OperationalError, InterfaceError):
                self.over.wait(0.1)

    def _kill(self, dice: random.Random) -> None:
        name = dice.choice(list(self.workers))
        self.workers[name].kill()
        self.workers[name].wait()
        self.start_worker(name)
        self.counts["kills"] += 1

    def _flush(self, _: random.Random) -> None:
        self.site.valkey.client().flushall()
        self.counts["flushes"] += 1

    def _restart(self, _: random.Random) -> None:
        assert self.site.postgres is not None
        self.site.postgres.restart()
        self.counts["restarts"] += 1

    def _say(self, _: random.Random) -> None:
        ended = self._insist(_ended)
        print(f"submitted {len(self.site.ledger)}, ended {ended}, {dict(self.counts)}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """0 where every job ended once and as it had to."""
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    figures, broken = run(args.jobs, seconds=args.seconds, seed=args.seed)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    print(json.dumps(figures))
    return 1 if broken or figures["lost"] or figures["doubled"] else 0


def run(
    jobs: int, *, seconds: float | None = None, seed: int = 0, pace: Pace | None = None
) -> tuple[dict[str, float], list[str]]:
    """The figures, and what the oracles have to say. Submits no longer than `seconds`."""
    with _service() as site, nursery(site.fleet) as born:
        soak, began = Soak(site, born, seed, pace or Pace()), time.monotonic()
        _run(soak, jobs, seconds)
        took_s = time.monotonic() - began
        figures = _figures(site) | {name: soak.counts[name] for name in ("kills", "restarts", "flushes")}
        rate = round(figures["submitted"] / took_s, 2)
        return figures | {"seconds": round(took_s, 1), "jobs_per_s": rate, "seed": seed}, list(site.broken())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="how many are submitted (10000)")
    parser.add_argument("--seconds", type=float, help="submit no longer than this, then wait for those that are there")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    return parser.parse_args(argv)


@contextmanager
def _service() -> Iterator[Site]:
    with ShortFolder() as home, ShortFolder() as for_valkey, ShortFolder() as for_postgres:
        valkey, postgres = Valkey(for_valkey), Postgres(for_postgres)
        valkey.start()
        try:
            with a_site(home, valkey, postgres.url.render_as_string(hide_password=False)) as site:
                site.postgres = postgres
                yield site
        finally:
            postgres.end()
            valkey.kill()


def _run(soak: Soak, jobs: int, seconds: float | None) -> None:
    soak.site.fleet.controller()
    for number in range(WORKERS):
        soak.start_worker(f"worker-{number}")
    with ThreadPoolExecutor(2) as pool:
        try:
            soak.torment(pool.submit(soak.submit, jobs, seconds), pool.submit(soak.cancel))
        finally:
            soak.over.set()
            for worker in soak.workers.values():
                worker.kill()
                worker.wait()


def _ended(s: Session) -> int:
    return s.scalars(select(func.count()).select_from(JobRow).where(JobRow.status.in_(TERMINAL))).one()


def _cancel(s: Session, job: str) -> Status:
    """How the job must end from here on."""
    try:
        store.request_cancel(s, job)
    except store.NotCancellable as error:
        return error.status
    return Status.CANCELLED


def _figures(site: Site) -> dict[str, int]:
    with db.reading(site.engine) as s:
        status = {id: Status(status) for id, status in s.execute(select(JobRow.id, JobRow.status))}
        moves = s.execute(select(JobEventRow.job_id, JobEventRow.data).where(JobEventRow.type == "status"))
        ends = Counter(job for job, data in moves if data["to"] in TERMINAL)
    acknowledged = Counter(status.get(job) for job in site.ledger)
    return {
        "submitted": len(site.ledger),
        **{str(end): acknowledged[end] for end in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)},
        "lost": len(site.ledger) - sum(acknowledged[end] for end in TERMINAL),
        "doubled": sum(count > 1 for count in ends.values()) + len(status.keys() - site.ledger.keys()),
    }


if __name__ == "__main__":
    sys.exit(main())
