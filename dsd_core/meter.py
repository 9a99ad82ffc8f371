"""Clocks of a training phase, and what the machine is doing meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


class Meter:
    """Counts images and seconds of training, checkpoints included; scoring and pictures are not training."""

    def __init__(self, first_step: int, seconds_before: float) -> None:
        self._before = seconds_before
        self._first_step = first_step
        self._start = self._window_start = self._saved_at = time.perf_counter()
        self._paused = 0.0
        self._window_images = 0

    def count(self, images: int) -> None:
        self._window_images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._paused += seconds
        self._window_start += seconds

    @property
    def train_seconds(self) -> float:
        return self._before + time.perf_counter() - self._start - self._paused

    def saved(self) -> None:
        self._saved_at = time.perf_counter()

    def since_saved(self) -> float:
        return time.perf_counter() - self._saved_at

    def rates(self, step: int, steps: int) -> tuple[float, float]:
        """Images per second since the last call, and the seconds the rest of the phase will take at its mean pace."""
        now = time.perf_counter()
        images_per_s = self._window_images / max(now - self._window_start, 1e-9)
        self._window_images, self._window_start = 0, now
        pace = (now - self._start - self._paused) / max(step - self._first_step, 1)
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
