"""What the queue costs when a million jobs have ended and ten thousand wait, beside a thousand and ten.

Two databases on one PostgreSQL server of the benchmark's own, with durable commits. One job of each kind of end and of
each line goes through the store; SQL multiplies them under other names, labels and ids, with their histories. Then
rounds of the same requests go to both in turn, through the HTTP application and the store: medians of one run, so what
else the machine does falls on both. Every round leaves as many jobs queued as before. Writes
`benchmarks/results/queue.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import URL, Engine, create_engine, text

from api.main import create_app
from benchmarks.pieces import RESULTS, ROOT
from dsd_core.spec import JobSpec, load_spec, parse_spec
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Reason
from jobs.store import Claim
from jobs.tables import Base
from tests.client.scenes import result, run
from tests.jobs.builders import an_offer
from tests.servers import ShortFolder, end, start_postgres

PAGE = 50  # jobs, as many as GET /jobs gives by itself
LEASE_S = 30.0
HELD_TO = 2.0  # times the cost at the small size
PROMISED = ("GET /jobs", "claim")  # costs whose names begin so are held to it
LINES = [(priority, group, device) for priority in (0, 10) for group in ("a", "b") for device in ("any", "cpu")]


@dataclass(frozen=True)
class Size:
    """How many jobs a database holds."""

    name: str
    finished: int
    queued: int


SMALL = Size("small", finished=1_000, queued=10)
LARGE = Size("large", finished=1_000_000, queued=10_000)

# Every filter finds a full page in both, except those that look for three jobs among all: the three oldest.
LISTS = {
    "GET /jobs": {},
    "GET /jobs, from the middle on": {"after": "MIDDLE"},
    "GET /jobs, status succeeded": {"status": "succeeded"},
    "GET /jobs, status failed": {"status": "failed"},
    "GET /jobs, status queued": {"status": "queued", "limit": "10"},
    "GET /jobs, a tenth by name": {"name": "student-3"},
    "GET /jobs, three by name": {"name": "rare"},
    "GET /jobs, by kind": {"kind": "distill"},
    "GET /jobs, a tenth by label": {"label": "owner:3"},
    "GET /jobs, three by label": {"label": "project:rare"},
    "GET /jobs, a tenth by name, none of that status": {"name": "student-3", "status": "cancelled"},
    "GET /jobs, a tenth by label, none of that status": {"label": "owner:3", "status": "cancelled"},
    "GET /jobs, a tenth by label, three by name": {"label": "owner:0", "name": "rare"},
}


@dataclass
class Stand:
    """One database with the application on it."""

    size: Size
    engine: Engine
    http: TestClient
    spec: JobSpec
    middle: str = ""  # a finished job's id
    last: str = ""  # the job at the end of the last line

    def get(self, path: str, query: dict[str, str]) -> Any:
        return self._checked(self.http.get(path, params=query | ({"after": self.middle} if "after" in query else {})))

    def post(self) -> str:
        body = {"kind": "train", "name": "posted", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
        return str(self._checked(self.http.post("/api/v1/jobs", json=body))["id"])

    def cancel(self, job_id: str) -> None:
        self._checked(self.http.post(f"/api/v1/jobs/{job_id}/cancel"))

    def submit(self, spec: JobSpec) -> str:
        with db.begin(self.engine) as s:
            return store.submit(s, spec, max_attempts=3)[0].id

    def claim(self) -> Claim:
        with db.begin(self.engine) as s:
            claim = store.claim_next(s, an_offer(), LEASE_S)
        assert claim is not None
        return claim

    def beat(self, claim: Claim) -> None:
        with db.begin(self.engine) as s:
            assert store.beat(s, claim, LEASE_S)

    def finish(self, claim: Claim, reason: Reason = Reason.FINISHED, **more: Any) -> None:
        with db.begin(self.engine) as s:
            assert store.finish(s, claim, reason, run_seconds=100.0, **more)

    def reconcile(self) -> None:
        """What the controller does each DSD_TICK_S."""
        with db.begin(self.engine) as s:
            store.expire_leases(s)
            store.restand(s)
            store.redispatch(s, 3600.0, fresh_s=LEASE_S)
            store.tracking_due(s, 20)

    def _checked(self, answer: Any) -> Any:
        assert answer.is_success, answer.text
        return answer.json()


def fill(stand: Stand) -> None:
    """Make the jobs: one of each sort through the store, the others as copies of it."""
    ended = [_ended(stand, Reason.FINISHED)] * 9 + [_ended(stand, Reason.DIVERGED)]
    waiting = [stand.submit(spec) for spec in _one_of_each_line(stand.spec)]
    with stand.engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE sorts (number int PRIMARY KEY, job_id text)"))
        for first, sorts, count in (("0", ended, stand.size.finished), ("10", waiting, stand.size.queued)):
            connection.execute(text("TRUNCATE sorts"))
            connection.execute(
                text("INSERT INTO sorts VALUES (:number, :job_id)"),
                [{"number": number, "job_id": job_id} for number, job_id in enumerate(sorts)],
            )
            copies = {"first": first, "sorts": len(sorts), "count": count - len(set(sorts))}
            for statement in _copying():
                connection.execute(text(statement), copies)
    with stand.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    stand.middle = f"0{stand.size.finished // 2:018d}"
    stand.last = waiting[-1]


def _one_of_each_line(spec: JobSpec) -> Iterator[JobSpec]:
    for priority, group, device in LINES:
        resources = spec.resources.model_copy(update={"device": device})
        yield spec.model_copy(update={"priority": priority, "group": group, "resources": resources})


def _ended(stand: Stand, reason: Reason) -> str:
    stand.submit(stand.spec.model_copy(update={"labels": {"owner": "0", "project": "first"}}))
    claim = stand.claim()
    with db.begin(stand.engine) as s:
        store.append_events(s, claim, [(event, offset) for offset, event in enumerate(run(), 1)])
    if reason is Reason.FINISHED:
        stand.finish(claim, result=result())
    else:
        stand.finish(claim, reason, error={"code": str(reason), "message": "The loss is not finite."})
    return claim.job_id


def _copying() -> list[str]:
    """Statements that copy jobs, their labels, the last three events of each and their messages."""
    new_id = "CAST(:first AS text) || lpad(CAST(n AS text), 19 - length(CAST(:first AS text)), '0')"
    owner = "CAST(n % 10 AS text)"
    project = "CASE WHEN n <= 3 AND :first = '0' THEN 'rare' ELSE 'p' || n % 1000 END"
    changed = {
        "id": new_id,
        "name": "CASE WHEN n <= 3 AND :first = '0' THEN 'rare' ELSE 'student-' || n % 10 END",
        "labels": f"json_build_object('owner', {owner}, 'project', {project})",
        "tracking": "'synced'",
    }
    jobs, events, outbox = (Base.metadata.tables[table].columns.keys() for table in ("jobs", "job_events", "outbox"))
    copies = (
        "FROM generate_series(1, CAST(:count AS int)) n JOIN sorts ON sorts.number = n % :sorts "
        "JOIN jobs t ON t.id = sorts.job_id"
    )
    return [
        f"INSERT INTO jobs ({', '.join(jobs)}) SELECT {', '.join(changed.get(c, f't.{c}') for c in jobs)} {copies}",
        f"INSERT INTO job_labels SELECT {new_id}, 'owner', {owner} {copies}",
        f"INSERT INTO job_labels SELECT {new_id}, 'project', {project} {copies}",
        f"INSERT INTO job_events ({', '.join(events)}) SELECT {new_id}, {', '.join(f'e.{c}' for c in events[1:])} "
        f"{copies} JOIN job_events e ON e.job_id = t.id AND e.seq > t.last_seq - 3",
        f"INSERT INTO outbox (job_id, {', '.join(outbox[2:])}) SELECT {new_id}, "
        f"{', '.join(f'o.{c}' for c in outbox[2:])} {copies} JOIN outbox o ON o.job_id = t.id",
    ]


class Watch:
    """Seconds that each thing took, by its name and size."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    @contextmanager
    def time(self, name: str, size: Size) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name][size.name].append(time.perf_counter() - start)

    def table(self) -> list[dict[str, Any]]:
        return [{"cost": name, **_compared(found)} for name, found in self.seconds.items()]


def _compared(found: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for size, seconds in found.items():
        low, _, high = quantiles(seconds, n=4)
        row[size] = {"ms": _ms(median(seconds)), "ms_quartiles": [_ms(low), _ms(high)], "runs": len(seconds)}
    return row | {"ratio": round(median(found[LARGE.name]) / median(found[SMALL.name]), 2)}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def one_round(stand: Stand, watch: Watch) -> None:
    """Every request once; it leaves as many jobs queued as there were."""

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        with watch.time(name, stand.size):
            return work(*arguments)

    for name, query in LISTS.items():
        timed(name, stand.get, "/api/v1/jobs", query)
    timed("GET /jobs/{job}, ended", stand.get, f"/api/v1/jobs/{stand.middle}", {})
    timed("GET /jobs/{job}, last in line", stand.get, f"/api/v1/jobs/{stand.last}", {})
    timed("POST /jobs/{job}/cancel", stand.cancel, timed("POST /jobs", stand.post))
    claim = timed("claim", stand.claim)
    spec = parse_spec(claim.spec)  # to stand in the same line
    timed("submit", stand.submit, spec)
    timed("heartbeat", stand.beat, claim)
    timed("finish", stand.finish, claim)
    timed("controller's round", stand.reconcile)


def throughput(stand: Stand, threads: int, jobs: int) -> dict[str, float]:
    """Submits and claims a second."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda _: stand.submit(stand.spec), range(jobs)))
        submitted = time.perf_counter()
        claims = list(pool.map(lambda _: stand.claim(), range(jobs)))
        claimed = time.perf_counter()
        list(pool.map(stand.finish, claims))
    assert len({claim.job_id for claim in claims}) == jobs
    return {"submits": jobs / (submitted - start), "claims": jobs / (claimed - submitted)}


def rates(stands: list[Stand], repeats: int, jobs: int) -> list[dict[str, Any]]:
    """The medians of several tries, both databases in turn."""
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for _ in range(repeats):
        for threads in (1, 4):
            for stand in stands:
                found[stand.size.name, threads].append(throughput(stand, threads, jobs))
    return [
        {"size": size, "threads": threads}
        | {f"{kind}_per_s": round(median(one[kind] for one in tries), 1) for kind in ("submits", "claims")}
        for (size, threads), tries in found.items()
    ]


@contextmanager
def stand_on(server: URL, size: Size, folder: Path) -> Iterator[Stand]:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {size.name}"))
    admin.dispose()
    url = server.set(database=size.name).render_as_string(hide_password=False)
    db.migrate(url)
    engine = db.make_engine(url, statement_timeout_s=1800)
    app = create_app(Settings(home=folder, database_url=url))
    spec = load_spec(ROOT / "examples" / "camvid-dsd.yaml")
    with TestClient(app, base_url="http://localhost") as http:
        stand = Stand(size, engine, http, spec)
        start = time.monotonic()
        fill(stand)
        say(f"{size.name}: filled in {time.monotonic() - start:.0f} s")
        yield stand
    engine.dispose()


def measure(small: Size, large: Size, rounds: int) -> dict[str, Any]:
    watch = Watch()
    with ShortFolder() as folder:
        process, server = start_postgres(folder, "-c", "fsync=on", "-c", "max_wal_size=8GB")
        try:
            with stand_on(server, small, folder) as first, stand_on(server, large, folder) as second:
                stands = [first, second]
                for number in range(rounds + 3):
                    for stand in stands if number % 2 else reversed(stands):
                        one_round(stand, watch if number >= 3 else Watch())  # the first ones warm caches
                say("costs are measured")
                return {
                    "sizes": {stand.size.name: _described(stand) for stand in stands},
                    "costs": watch.table(),
                    "rates": rates(stands, repeats=3, jobs=60),
                }
        finally:
            end(process, signal.SIGQUIT)


def _described(stand: Stand) -> dict[str, Any]:
    with stand.engine.connect() as connection:
        gib = connection.scalar(text("SELECT pg_database_size(current_database())")) / 2**30
    return {"finished": stand.size.finished, "queued": stand.size.queued, "database_gib": round(gib, 2)}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    small, large = (report["sizes"][size] for size in ("small", "large"))
    lines = [
        "# What the queue costs",
        "",
        f"Made by `{report['command']}` on {report['machine']}. Two databases of one PostgreSQL server with its default"
        f" settings: {small['finished']:,} ended and {small['queued']:,} queued jobs, and {large['finished']:,} and"
        f" {large['queued']:,} ({large['database_gib']} GiB), with {len(LINES)} lines to wait in each. Medians and"
        " quartiles in ms; requests went to both in turn, HTTP ones through the application in the same process.",
        "",
        "| | small | large | ratio |",
        "|---|---|---|---|",
    ]
    for row in report["costs"]:
        cells = [_cell(row[size]) for size in ("small", "large")]
        lines.append(f"| {row['cost']} | {cells[0]} | {cells[1]} | {row['ratio']} |")
    lines += ["", "| jobs | threads | submits/s | claims/s |", "|---|---|---|---|"]
    for row in report["rates"]:
        lines.append(f"| {row['size']} | {row['threads']} | {row['submits_per_s']} | {row['claims_per_s']} |")
    kept = "kept" if report["kept"] else "not kept"
    lines += ["", f"`GET /jobs` and claim within {HELD_TO:.0f} times of the small size: {kept}."]
    return "\n".join(lines) + "\n"


def _cell(cost: dict[str, Any]) -> str:
    low, high = cost["ms_quartiles"]
    return f"{cost['ms']} ({low} to {high})"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--rounds", type=int, default=30, help="requests of each sort to each database")
    parser.add_argument("--finished", type=int, default=LARGE.finished, help="ended jobs of the large size")
    arguments = parser.parse_args()
    large = Size(LARGE.name, arguments.finished, LARGE.queued)
    before = os.getloadavg()[0]
    found = measure(SMALL, large, arguments.rounds)
    load = f"a load of {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    report = {
        "command": "make queue-costs",
        "machine": f"{platform.machine()} with {os.cpu_count()} cores, {load}",
        **found,
        "kept": all(row["ratio"] <= HELD_TO for row in found["costs"] if row["cost"].startswith(PROMISED)),
    }
    if large == LARGE:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "queue.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "queue.md").write_text(markdown(report))
    print(json.dumps(report, indent=1) if arguments.json else markdown(report))
    sys.exit(0 if report["kept"] else 1)


if __name__ == "__main__":
    main()
