"""Real trainings that take their steps in turn, with loading, logging and all.

They are threads of one process and share its memory: where that happens to lie makes a process some per cent faster or
slower for as long as it lives, which would otherwise be taken for a difference between them.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench.measure import Spent
from benchmarks.bench.sides import Pace, Side
from dsd_core.events import Event
from dsd_core.signals.store import Store
from dsd_core.spec import parse_spec
from dsd_core.train import train


class Job(NamedTuple):
    """A job file, the folder of its run, and where its signals are; None: in that folder."""

    spec: dict[str, Any]
    out: Path
    store: Path | None = None


class Trainings(Side):
    """A process that trains some jobs. Before their first steps they have read the data and scored the teacher."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        # One arena of memory for all threads, which is what a job alone in its process has.
        options = {name: [job.spec, str(job.out), job.store and str(job.store)] for name, job in jobs.items()}
        super().__init__("training", options, MALLOC_ARENA_MAX="1")

    def steps(self, count: int = 1) -> dict[str, Spent]:
        """What so many steps of each job took, one at a time in an order drawn anew."""
        self.work(count)
        return {name: Spent(*spent) for name, spent in self.said["spent"].items()}


class _Training(threading.Thread):
    """A training that waits before each of its steps."""

    def __init__(self, spec: dict[str, Any], out: str, store: str | None) -> None:
        super().__init__(daemon=True)
        self._spec, self._out, self._store = parse_spec(spec), Path(out), None if store is None else Store(Path(store))
        self._may_go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

    def run(self) -> None:
        def hear(event: Event) -> None:
            pass

        self._out.mkdir(parents=True)
        try:
            train(self._spec, self._out, hear, store=self._store, enough=self._paused)
        except BaseException as error:
            self._error = error
        self._waits.release()

    def reach(self) -> None:
        """Start, and go on until before the first step."""
        self.start()
        self._await()

    def step(self) -> Spent:
        """Take a step, and say what it took."""
        start = Spent.until_now()
        self._may_go.release()
        self._await()
        return Spent.until_now() - start

    def _await(self) -> None:
        self._waits.acquire()
        if self._error is not None:
            raise self._error

    def _paused(self) -> bool:
        """What a training asks once before its first step, and once after each."""
        self._waits.release()
        self._may_go.acquire()
        return False


def run(jobs: dict[str, Any]) -> None:
    pace = Pace()
    trainings = {name: _Training(*job) for name, job in jobs.items()}
    for training in trainings.values():
        training.reach()
    order, draw = list(trainings), random.Random(0)
    goes_on = pace.start()
    while goes_on:
        spent = dict.fromkeys(trainings, Spent())
        for _ in range(pace.left):
            draw.shuffle(order)
            for name in order:
                spent[name] += trainings[name].step()
            goes_on = pace.done(spent={name: [took.wall, took.cpu] for name, took in spent.items()})


if __name__ == "__main__":
    run(json.loads(sys.argv[sys.argv.index("--side") + 1]))
