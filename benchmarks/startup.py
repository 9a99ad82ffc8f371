"""How long a job waits between its claim and its first training step, with and without the warm fork server.

A worker of this process claims a small job (ENet, eight images of 48x64 pixels in a folder), starts the training
process and is asked to cancel as soon as the first step is reported; this is repeated, cold and warm in turn. Times are
those of the job's own history: the move to `running`, the `started` event, the first `progress` event. Memory is what
the kernel counts (Pss) for a cold training process alone, for an idle server, and for a server with a process it has
forked. Prints JSON; `--write` keeps it in `benchmarks/results/startup.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
from PIL import Image
from sqlalchemy import Engine

from benchmarks.pieces import RESULTS
from dsd_core.spec import parse_spec
from jobs import db, store
from jobs.settings import Settings
from worker import run
from worker.machine import offer_of
from worker.slot import Slot

IMAGES = {"train": 8, "val": 2}
CLASSES = "classes: [road, car]\n"
MIB = 2**20


def write_data(root: Path) -> None:
    """A folder dataset of noise with two classes."""
    draw = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for kind, shape, top in (("images", (48, 64, 3), 256), ("masks", (48, 64), 2)):
            (root / kind / split).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(draw.integers(0, top, shape, dtype=np.uint8))
                image.save(root / kind / split / f"{index}.png")
    (root / "classes.yaml").write_text(CLASSES)


def job(data: Path) -> dict[str, Any]:
    train = {"epochs": 1000, "batch": 4, "threads": 1, "log_every": 1}
    return {
        "kind": "train",
        "name": "startup",
        "dataset": {"name": "folder", "root": str(data)},
        "student": {"network": "enet"},
        "train": train,
    }


def attempt(slot: Slot, engine: Engine, data: Path) -> dict[str, float]:
    """Seconds from the claim of a job to its `started` event and to its first step, and the memory at that step."""
    with db.begin(engine) as s:
        job_id = store.submit(s, parse_spec(job(data)), max_attempts=1)[0].id
    seen: dict[str, float] = {}

    def watch() -> None:
        until(lambda: events(engine, job_id, "progress"))
        seen["mib"] = taken_mib()
        with db.begin(engine) as s:
            store.request_cancel(s, job_id)

    watcher = Thread(target=watch)
    watcher.start()
    run.work(slot)  # in the main thread: its end is that of the training process
    watcher.join()
    moves = events(engine, job_id, "status")
    claimed = next(event.at for event in moves if event.data["to"] == "running")
    for name in ("started", "progress"):
        seen[name] = (events(engine, job_id, name)[0].at - claimed).total_seconds()
    return seen


def events(engine: Engine, job_id: str, kind: str) -> list[Any]:
    with db.reading(engine) as s:
        return store.events_after(s, job_id, 0, 100, [kind])


def until(what: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit("The job did not come to its first step within two minutes.")
        time.sleep(0.05)


def taken_mib() -> float:
    """The proportional share of memory of all that this process has started."""
    return sum(process.memory_full_info().pss for process in psutil.Process().children(recursive=True)) / MIB


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": [round(value, 3) for value in values],
    }


def measure(folder: Path, runs: int) -> dict[str, Any]:
    write_data(folder / "data")
    settings = Settings(home=folder, heartbeat_s=0.2, grace_s=10, devices="cpu", database_url=None, broker_url=None)
    db.migrate(settings.db_url)
    engine = db.make_engine(settings.db_url)
    cold = Slot(settings.model_copy(update={"warm": False}), offer_of(settings, "cold"))
    warm = Slot(settings, offer_of(settings, "warm"))
    cold_mib = attempt(cold, engine, folder / "data")["mib"]  # and now the files of torch are in memory
    warm.warm_up()
    began = time.monotonic()
    until(lambda: warm.server.ready)
    boot_s = time.monotonic() - began
    idle_mib = taken_mib()
    seen: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(runs):
        for name, slot in (("cold", cold), ("warm", warm)):
            seen[name].append(attempt(slot, engine, folder / "data"))
    warm.server.close()
    engine.dispose()

    def of(event: str) -> dict[str, Any]:
        return {name: spread([figures[event] for figures in runs]) for name, runs in seen.items()}

    return {
        "claim_to_first_step_s": of("progress"),
        "claim_to_started_s": of("started"),
        "server_boot_s": round(boot_s, 2),
        "memory_mib": {
            "cold_job": round(cold_mib),
            "idle_server": round(idle_mib),
            "server_and_warm_job": round(statistics.median(figures["mib"] for figures in seen["warm"])),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.runs)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}"
    load = round(os.getloadavg()[0], 1)
    report = {"command": f"python -m benchmarks.startup --runs {arguments.runs}", "machine": machine, "load": load}
    report |= figures
    if arguments.write:
        (RESULTS / "startup.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
