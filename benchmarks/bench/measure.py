"""Clocks and figures that all parts share."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spent:
    """Seconds on the wall, and of this process on all its processor cores."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def until_now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


def figure(rounds: Sequence[float], **more: Any) -> dict[str, Any]:
    """The median of some rounds with their spread, from the least to the greatest."""
    exact = [round(value, 5) for value in rounds]
    middle = round(statistics.median(rounds), 5)
    return {"value": middle, "spread": [min(exact), max(exact)], "rounds": exact, **more}


def ratio(above: Sequence[Spent], below: Sequence[Spent], **more: Any) -> dict[str, Any]:
    """CPU seconds over CPU seconds, round by round, and the same of the wall."""
    pairs = list(zip(above, below, strict=True))
    wall = statistics.median(a.wall / b.wall for a, b in pairs)
    return figure([a.cpu / b.cpu for a, b in pairs], of="CPU seconds", wall=round(wall, 5), **more)


def per_step(rounds: Sequence[Spent], steps: int) -> dict[str, Any]:
    """Milliseconds of a step."""
    return figure([1000 * spent.cpu / steps for spent in rounds], of="CPU ms a step")


def machine() -> dict[str, Any]:
    import torch

    return {
        "processor": f"{_processor()} with {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
    }


def in_words(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
