"""What the service costs: requests, streams of events, downloads, startup, and all that with ten times as much in it.

The API is started as `dsd up` starts it, on SQLite and on a PostgreSQL with durable commits, and asked over loopback;
what is compared is measured in turn. CPU seconds and memory are those of the API's process. Writes
`benchmarks/results/service.{json,md}`.

- requests: submissions with and without an Idempotency-Key, the first page of jobs, whole and filtered, one job.
- events: simultaneous watchers of one job (`benchmarks/watchers.py`); from the commit of an event to its receipt.
- downloads: a registered student's files, beside nginx with sendfile on the same folder (`benchmarks/static.py`).
- startup: `benchmarks/startup.py`. Growth: `benchmarks/queue.py` with other sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any

from sqlalchemy import Engine

from benchmarks import queue as queue_costs
from benchmarks import startup, static
from benchmarks.load import MIB, Line, Meter, Taken, drive, request, running, say, spread
from benchmarks.pieces import RESULTS, ROOT
from benchmarks.queue import Size
from deploy import services
from dsd_core.events import parse
from jobs import db, store
from jobs.settings import Settings
from jobs.status import Reason
from jobs.store import Claim
from tests.client.scenes import progress
from tests.jobs.builders import a_queued_job
from tests.servers import ShortFolder, end, free_ports, fresh_database, spawn, start_postgres

JOBS = "/api/v1/jobs"
BODY = {"kind": "train", "name": "posted", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
STUDENT = {"model.safetensors": 1_500_000, "large.onnx": 100_000_000}  # bytes; the first is that of a small student
GROWN = ("submit", "POST /jobs", "GET /jobs", "GET /jobs, status queued", "GET /jobs/{job}, last in line", "claim")

SMALL = Size("small", finished=1_000, queued=500)
LARGE = Size("large", finished=10_000, queued=5_000)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 5  # of each request, download
    requests: int = 100  # of each sort in a round
    clients: int = 8  # connections at once
    watchers: tuple[int, ...] = (50, 500)
    events: int = 40  # that the watchers wait for
    quiet_s: float = 10.0  # what waiting costs is measured over this time
    startups: int = 5
    small: Size = SMALL
    large: Size = LARGE
    queue_rounds: int = 20


FULL = Scale()
QUICK = Scale(
    rounds=2, requests=40, watchers=(5, 50), events=8, quiet_s=2.0, startups=1, queue_rounds=3,
    small=Size("small", 100, 20), large=Size("large", 1_000, 200),
)  # fmt: skip


@dataclass(frozen=True)
class Api:
    """The API on a database."""

    database: str
    settings: Settings
    engine: Engine
    port: int
    meter: Meter


@contextmanager
def api_on(database: str, url: str | None, folder: Path) -> Iterator[Api]:
    """The API as `dsd up` starts it."""
    folder.mkdir()
    (port,) = free_ports(1)
    settings = Settings(home=folder, database_url=url, api_port=port, broker_url=None)
    db.migrate(settings.db_url)
    engine = db.make_engine(settings.db_url)
    service = services.api(settings, f"http://127.0.0.1:{port}")
    env = os.environ | {"DSD_HOME": str(folder), "DSD_DATABASE_URL": settings.db_url, "PYTHONPATH": str(ROOT)}
    process = spawn(list(service.argv), folder / "api.log", signal.SIGTERM, env=env)
    with running(process, port) as meter:
        yield Api(database, settings, engine, port, meter)
    engine.dispose()


# --- requests ---------------------------------------------------------------------------------------------------------


def requests(apis: Sequence[Api], scale: Scale) -> list[dict[str, Any]]:
    """Requests a second, and what one costs the API, from `scale.clients` connections at once."""
    sorts: dict[str, Callable[[], bytes]] = {
        "POST /jobs": lambda: request("POST", JOBS, BODY),
        "POST /jobs, Idempotency-Key": lambda: request("POST", JOBS, BODY, Idempotency_Key=uuid.uuid4().hex),
        "GET /jobs": lambda: request("GET", JOBS),
        "GET /jobs, status queued": lambda: request("GET", f"{JOBS}?status=queued"),
        "GET /jobs, by name": lambda: request("GET", f"{JOBS}?name=posted"),
    }
    found: dict[tuple[str, str], list[Taken]] = defaultdict(list)
    for number in range(scale.rounds + 1):  # the first one warms up
        for name, make in sorts.items():
            for api in apis if number % 2 else reversed(apis):
                asked = [make() for _ in range(scale.requests)]
                found[name, api.database].append(drive(api.port, api.meter, asked, scale.clients))
    return [
        {
            "request": name,
            "database": database,
            "per_s": spread([one.requests / one.seconds for one in taken[1:]], 1),
            "cpu_ms": spread([1000 * one.cpu_s / one.requests for one in taken[1:]]),
        }
        for (name, database), taken in found.items()
    ]


# --- events -----------------------------------------------------------------------------------------------------------


def fan_out(api: Api, watchers: int, scale: Scale) -> dict[str, Any]:
    """One job's events to many watchers, each over a connection of its own."""
    job_id = a_queued_job(api.engine)
    with db.begin(api.engine) as s:
        claim = store.claim(s, job_id, 1, "worker-1", 3600.0)
    assert claim is not None
    before = api.meter.mib()
    with _watching(api, job_id, watchers, scale) as said:
        assert said.readline() == "ready\n"
        time.sleep(1.0)
        held = api.meter.mib() - before
        cpu = api.meter.cpu_s()
        time.sleep(scale.quiet_s)
        quiet_cpu = (api.meter.cpu_s() - cpu) / scale.quiet_s
        cpu, start = api.meter.cpu_s(), time.monotonic()
        committed = _happen(api, claim, scale)
        told_cpu = api.meter.cpu_s() - cpu - quiet_cpu * (time.monotonic() - start)
        with db.begin(api.engine) as s:
            assert store.finish(s, claim, Reason.DIVERGED, run_seconds=1.0)
        seen = json.loads(said.readline())
    waits = {seq: [at - when for at in seen["times"].get(seq, [])] for seq, when in committed.items()}
    lost = scale.events * watchers - sum(map(len, waits.values())) + seen["wrong"]
    everyone = sorted(wait for found in waits.values() for wait in found)
    return {
        "database": api.database,
        "watchers": watchers,
        "events": scale.events,
        "lost": lost,
        "receipt_ms": {
            "median": round(1000 * median(everyone), 1),
            "p99": round(1000 * quantiles(everyone, n=100)[98], 1),
        },
        "all_received_ms": spread([1000 * max(found) for found in waits.values()], 1),
        "cpu_ms_per_receipt": round(1000 * told_cpu / (scale.events * watchers), 3),
        "quiet_cpu_share": round(quiet_cpu, 4),
        "kib_per_watcher": round(1024 * held / watchers, 1),
    }


@contextmanager
def _watching(api: Api, job_id: str, watchers: int, scale: Scale) -> Iterator[IO[str]]:
    """What the process of the watchers says."""
    argv = [sys.executable, "-m", "benchmarks.watchers", str(api.port), job_id, str(watchers), "2"]
    process = subprocess.Popen([*argv, str(2 + scale.events)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        process.communicate()


def _happen(api: Api, claim: Claim, scale: Scale) -> dict[str, float]:
    """Write events one by one into the job's history; when each was committed."""
    committed = {}
    draw = random.Random(0)
    for number in range(scale.events):
        event = parse(progress("student", number + 1, scale.events, number + 1)).model_dump(mode="json")
        with db.begin(api.engine) as s:
            assert store.append_events(s, claim, [(event, number + 1)])
        committed[str(3 + number)] = time.monotonic()
        time.sleep(draw.uniform(0.3, 1.0))
    return committed


# --- downloads --------------------------------------------------------------------------------------------------------


def downloads(api: Api, folder: Path, scale: Scale) -> list[dict[str, Any]]:
    """A student's files from the API and from nginx in turn, over one connection."""
    job_id, version = a_queued_job(api.engine), 1
    student = api.settings.run_dir(job_id) / "student"
    digests = {name: _written(student / name, size) for name, size in STUDENT.items()}
    with db.begin(api.engine) as s:
        files = [{"path": name, "bytes": STUDENT[name], "sha256": digest} for name, digest in digests.items()]
        store.add_model_version(s, name="posted", version=version, job_id=job_id, files=files, tags={}, miou=0.5)
    command = static.program(folder)
    with static.serving(command, student, folder) as (port, meter):
        servers = {"ours": (api.port, api.meter, f"/api/v1/models/posted/versions/{version}/files/")}
        servers["nginx"] = (port, meter, "/")
        for peer, _, path in servers.values():
            for name, digest in digests.items():
                _check(peer, request("GET", path + name), digest)
        rows = [_compared(name, servers, scale) for name in STUDENT]
    return [row | {"reference": static.version(command)} for row in rows]


def _written(path: Path, size: int) -> str:
    """A file of noise, and its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _check(port: int, asked: bytes, digest: str) -> None:
    line, found = Line(port), hashlib.sha256()
    line.ask(asked, found.update)
    line.close()
    assert found.hexdigest() == digest


def _compared(name: str, servers: dict[str, tuple[int, Meter, str]], scale: Scale) -> dict[str, Any]:
    times = max(1, 200 * MIB // STUDENT[name])
    found: dict[str, list[Taken]] = {who: [] for who in servers}
    for number in range(scale.rounds + 1):
        for who in servers if number % 2 else reversed(servers):
            port, meter, path = servers[who]
            found[who].append(drive(port, meter, [request("GET", path + name)] * times, clients=1))
    row: dict[str, Any] = {"file": name, "bytes": STUDENT[name]}
    for who, taken in found.items():
        row[who] = {
            "mib_per_s": spread([one.bytes / MIB / one.seconds for one in taken[1:]], 0),
            "cpu_ms_per_100_mib": spread([100_000 * one.cpu_s / (one.bytes / MIB) for one in taken[1:]], 1),
        }
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(found["ours"], found["nginx"], strict=True)]
    return row | {"speed_over_nginx": spread(ratios[1:], 3)}


# --- all --------------------------------------------------------------------------------------------------------------


def measure_all(scale: Scale = FULL) -> dict[str, Any]:
    """Every figure, with the command and the machine; the folders and servers it needs are its own."""
    before = os.getloadavg()[0]
    found = _measure(scale)
    load = f"a load of {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    machine = f"{platform.machine()} with {os.cpu_count()} cores, {load}"
    return {"command": "python -m benchmarks.service", "machine": machine, **found}


def keep(report: dict[str, Any]) -> None:
    """Write the report beside the others."""
    (RESULTS / "service.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "service.md").write_text(markdown(report))


def _measure(scale: Scale) -> dict[str, Any]:
    with ShortFolder() as folder:
        say("startup")
        with tempfile.TemporaryDirectory() as home:
            report: dict[str, Any] = {"startup": startup.measure(Path(home), scale.startups)}
        say("growth")
        report["growth"] = growth(scale)
        (folder / "postgres").mkdir()
        process, server = start_postgres(folder / "postgres", "-c", "fsync=on")
        try:
            with ExitStack() as stack:
                url = stack.enter_context(fresh_database(server))
                apis = [stack.enter_context(api_on(*one)) for one in _databases(url, folder)]
                say("requests")
                report["requests"] = requests(apis, scale)
                say("events")
                report["events"] = [fan_out(api, count, scale) for api in apis for count in scale.watchers]
                say("downloads")
                report["downloads"] = downloads(apis[0], folder, scale)
        finally:
            end(process, signal.SIGQUIT)
    return report


def _databases(url: str, folder: Path) -> Iterator[tuple[str, str | None, Path]]:
    yield "SQLite", None, folder / "sqlite"
    yield "PostgreSQL", url, folder / "home"


def growth(scale: Scale) -> dict[str, Any]:
    """Costs with ten times as many jobs, beside those before."""
    found = queue_costs.measure(scale.small, scale.large, scale.queue_rounds)
    return {"sizes": found["sizes"], "costs": [row for row in found["costs"] if row["cost"] in GROWN]}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# What the service costs", "", f"Made by `{report['command']}` on {report['machine']}. {_READING}", ""]
    lines += ["| request | database | requests/s | CPU ms of the API |", "|---|---|---|---|"]
    for row in report["requests"]:
        lines.append(f"| {row['request']} | {row['database']} | {_cell(row['per_s'])} | {_cell(row['cpu_ms'])} |")
    lines += [
        "",
        "| watchers of a job | database | events lost | ms to receipt, median | 99th percentile | all have it |"
        " CPU ms a receipt | CPU share while quiet | KiB a watcher |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["events"]:
        waits = row["receipt_ms"]
        cells = [row["watchers"], row["database"], row["lost"], waits["median"], waits["p99"]]
        cells += [
            _cell(row["all_received_ms"]),
            row["cpu_ms_per_receipt"],
            row["quiet_cpu_share"],
            row["kib_per_watcher"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"| file | MB | MiB/s | {report['downloads'][0]['reference']} MiB/s | of nginx's speed |"
        " CPU ms for 100 MiB | nginx's |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["downloads"]:
        ours, theirs = row["ours"], row["nginx"]
        cells = [row["file"], row["bytes"] / 1e6, _cell(ours["mib_per_s"]), _cell(theirs["mib_per_s"])]
        cells += [
            _cell(row["speed_over_nginx"]),
            _cell(ours["cpu_ms_per_100_mib"]),
            _cell(theirs["cpu_ms_per_100_mib"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *_startup(report["startup"]), "", *_growth(report["growth"])]) + "\n"


_READING = (
    "The API is one process, asked over loopback. Medians, with the least and the most in brackets; CPU and memory are"
    " the API's own."
)


def _startup(found: dict[str, Any]) -> list[str]:
    lines = ["| s from a job's claim | cold | warm |", "|---|---|---|"]
    for name, what in (("claim_to_started_s", "to its start"), ("claim_to_first_step_s", "to its first step")):
        lines.append(f"| {what} | {_cell(found[name]['cold'])} | {_cell(found[name]['warm'])} |")
    return lines


def _growth(found: dict[str, Any]) -> list[str]:
    small, large = (found["sizes"][size] for size in ("small", "large"))
    lines = [
        f"| ms | {small['finished']:,} ended, {small['queued']:,} queued | {large['finished']:,} ended,"
        f" {large['queued']:,} queued | ratio |",
        "|---|---|---|---|",
    ]
    for row in found["costs"]:
        lines.append(f"| {row['cost']} | {row['small']['ms']} | {row['large']['ms']} | {row['ratio']} |")
    return lines


def _cell(found: dict[str, Any]) -> str:
    return f"{found['median']} ({found['min']} to {found['max']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="little of everything, to see that it works; writes nothing"
    )
    quick = parser.parse_args().quick
    report = measure_all(QUICK if quick else FULL)
    if not quick:
        keep(report)
    print(markdown(report))


if __name__ == "__main__":
    main()
