"""Where the time of a training step goes. The code that trains names its phases; a clock, where one runs, adds up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Times:
    """Seconds on the wall, and of this process on all its processor cores."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Times:
        """Since some moment in the past; two of them can be compared."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Times) -> Times:
        return Times(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Times) -> Times:
        return Times(self.wall - other.wall, self.cpu - other.cpu)


class Clock:
    """Adds up the time of each phase, without that of phases inside it; on a GPU it waits for the work of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inside: list[Times] = []  # of the phases that are open, what went to phases inside them
        self.phases: dict[str, Times] = {}
        self._start = self._now()

    def restart(self) -> None:
        """Forget what was."""
        self.phases = {}
        self._start = self._now()

    @property
    def whole(self) -> Times:
        """Since the start."""
        return self._now() - self._start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        self._inside.append(Times())
        try:
            yield
        finally:
            spent = self._now() - start
            own = spent - self._inside.pop()
            self.phases[name] = self.phases.get(name, Times()) + own
            if self._inside:
                self._inside[-1] += spent

    def _now(self) -> Times:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Times.now()


_running: list[Clock] = []


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Have this clock, and no other, take the time of phases."""
    _running.append(clock)
    try:
        yield
    finally:
        _running.remove(clock)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A part of a step. Without a clock this costs a microsecond."""
    if not _running:
        yield
        return
    with _running[-1].phase(name):
        yield


def each_in_phase(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; that each of them is made is the phase, not what is done with it."""
    iterator, end = iter(items), object()
    while True:
        with phase(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
