"""What this machine has for jobs: GPUs as nvidia-smi shows them, RAM as the kernel lets us have it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from dsd_core.errors import DsdError
from jobs.resources import Offer
from jobs.settings import Settings

GIB = 2**30
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits")  # index, MiB
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of version 2, of 1


class NoSuchDevice(DsdError):
    """DSD_DEVICES names a GPU that this machine does not have."""


def offer_of(settings: Settings, worker: str) -> Offer:
    """What a worker of this name has on this machine. Raises NoSuchDevice."""
    found = gpus()
    devices = chosen(settings.devices, found)
    memory_gib = min(found[device] for device in devices) if devices else ram_gib()
    return Offer(
        worker=worker,
        host=socket.gethostname(),
        device="cuda" if devices else "cpu",
        devices=devices,
        memory_gib=round(memory_gib, 2),
        labels=settings.worker_labels,
    )


def chosen(wanted: str, found: Mapping[str, float]) -> tuple[str, ...]:
    """The GPUs of a worker: those of DSD_DEVICES, all for `auto`, none for `cpu`. Raises NoSuchDevice."""
    if wanted in ("auto", "cpu"):
        return tuple(found) if wanted == "auto" else ()
    devices = tuple(part.strip() for part in wanted.split(","))
    if missing := [device for device in devices if device not in found]:
        known = f"It has {', '.join(found)}." if found else "nvidia-smi shows none."
        raise NoSuchDevice(
            f"DSD_DEVICES names GPU {', '.join(missing)}, which this machine does not have.",
            hint=f"{known} Write their numbers, or auto, or cpu.",
        )
    return devices


def shares(devices: Sequence[str], workers: int) -> list[str]:
    """DSD_DEVICES for each of so many workers, so that no two share a GPU; those for whom there is none get `cpu`."""
    if len(devices) < workers:
        return [*devices, *["cpu"] * (workers - len(devices))]
    bounds = [len(devices) * number // max(1, workers) for number in range(workers + 1)]
    return [",".join(devices[start:end]) for start, end in pairwise(bounds)]


def gpus() -> dict[str, float]:
    """The memory in GiB of each GPU, by number; only those that CUDA_VISIBLE_DEVICES lets this process use."""
    try:
        said = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = parse_gpus(said)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else {number: found[number] for number in visible.split(",") if number in found}


def parse_gpus(said: str) -> dict[str, float]:
    """What nvidia-smi prints: `0, 81559`, one line each."""
    rows = (line.split(",") for line in said.splitlines() if line.strip())
    return {number.strip(): float(mib) / 1024 for number, mib in rows}


def ram_gib() -> float:
    """The RAM of this machine, or of the container that this process is in."""
    limits = [psutil.virtual_memory().total, *(limit for path in CGROUP_LIMITS if (limit := _limit(Path(path))))]
    return min(limits) / GIB


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # `max` where there is none
