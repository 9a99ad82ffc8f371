"""Work of several processes that share a core, so that what else the machine does falls on all of them.

The parent starts a process for each side of a comparison with `Side`, which says how many units it shall do next.
Within the process `Pace` follows. Each has the memory, the allocator and the settings of a process of its own, as a
job has.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Self

from benchmarks.bench.measure import Spent
from benchmarks.pieces import ROOT

MIB = 2**20


class Side:
    """A process that runs `benchmarks.bench.MODULE` with `--side` and these options, and works when it is told to. All
    run on one core."""

    def __init__(self, module: str, options: Mapping[str, Any], **environment: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.bench.{module}", "--side", json.dumps(options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._name = f"{module} {json.dumps(options)}"
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        os.sched_setaffinity(self._process.pid, {min(os.sched_getaffinity(0))})
        self.said: dict[str, Any] = {}
        """What the process last said, beside what its work took."""
        self.peak_mib = 0.0
        """The most memory it has held so far."""

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def work(self, units: int = 1) -> Spent:
        """Do so many units, and say what they took. Raises RuntimeError where the process has ended."""
        self._ask(units)
        return self._answer()

    def _ask(self, units: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{units}\n")
        self._process.stdin.flush()

    def _answer(self) -> Spent:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}.")
        self.said = json.loads(line)
        self.peak_mib = self.said.pop("peak_mib")
        return Spent(self.said.pop("wall"), self.said.pop("cpu"))


class Pace:
    """In the process: `start()` when it is ready, then `done()` after every unit."""

    def __init__(self) -> None:
        self._answers, self._left, self._began = os.fdopen(os.dup(1), "w"), 0, Spent()
        os.dup2(2, 1)  # what else is printed is not an answer

    def start(self, **said: Any) -> bool:
        """Say that it is ready, and wait to be told what to do. False: nothing more."""
        return self._next(Spent(), said)

    def done(self, **said: Any) -> bool:
        """Count a unit, and where it was the last that was asked for say what they took and wait. False: nothing
        more."""
        self._left -= 1
        return self._left > 0 or self._next(Spent.until_now() - self._began, said)

    @property
    def left(self) -> int:
        """Units that are still to be done."""
        return self._left

    def begin(self) -> None:
        """Count the time from now: what was made ready since the last answer is not work."""
        self._began = Spent.until_now()

    def _next(self, spent: Spent, said: dict[str, Any]) -> bool:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
        answer = {"wall": spent.wall, "cpu": spent.cpu, "peak_mib": peak, **said}
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        line = sys.stdin.readline()
        self._left = int(line or 0)
        self.begin()
        return self._left > 0


def together(sides: Mapping[str, Side], units: int, block: int = 5) -> dict[str, Spent]:
    """What so many units of each took. They go by blocks, which all sides begin at once."""
    spent = dict.fromkeys(sides, Spent())
    for start in range(0, units, block):
        for side in sides.values():
            side._ask(min(block, units - start))
        for name, side in sides.items():
            spent[name] += side._answer()
    return spent
