"""Clocks of one student's training, and what the machine is doing meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Spent:
    """Optimiser steps with their time on the wall, and of this process on all its processor cores; loader processes
    are not in the latter."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: int = 0

    @classmethod
    def until_now(cls) -> Spent:
        """Since some moment in the past; two of them can be compared."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds, self.steps + other.steps)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds, self.steps - other.steps)


class Meter:
    """Counts images and time of training, checkpoints included; scoring and pictures are not training.

    `before` is what earlier attempts have spent on the steps up to `first_step`.
    """

    def __init__(self, first_step: int, before: Spent) -> None:
        self._before = before
        self._first_step = first_step
        self._start = Spent.until_now()
        self._window_start = self._start.seconds
        self._paused = Spent()
        self._window_images = 0
        self._steps = 0

    def count_step(self, images: int) -> None:
        self._steps += 1
        self._window_images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = Spent.until_now()
        yield
        pause = Spent.until_now() - start
        self._paused += pause
        self._window_start += pause.seconds

    @property
    def spent(self) -> Spent:
        """On all steps so far, earlier attempts included."""
        return self._before + self._here

    @property
    def _here(self) -> Spent:
        return Spent.until_now() - self._start - self._paused + Spent(steps=self._steps)

    def rates(self, step: int, steps: int) -> tuple[float, float]:
        """Images per second since the last call, and the seconds the rest of the phase will take at its mean pace."""
        now = time.perf_counter()
        images_per_s = self._window_images / max(now - self._window_start, 1e-9)
        self._window_images, self._window_start = 0, now
        pace = self._here.seconds / max(step - self._first_step, 1)
        return images_per_s, pace * (steps - step)


def system_metrics(device: torch.device) -> dict[str, float]:
    """Load of the machine and memory of this process, under the names MLflow gives system metrics."""
    memory = psutil.virtual_memory()
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        metrics["gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        metrics["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
        metrics["gpu_0_peak_allocated_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
    return metrics
