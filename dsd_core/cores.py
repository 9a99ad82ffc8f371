"""How many CPU cores a process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from dsd_core.errors import SpecError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
THREADS = "DSD_THREADS"


def usable_cores(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP, *, among: int = 1) -> int:
    """The cores this process may run on, or fewer: as many as the quota of its control groups comes to. Of these an
    equal share where they are divided `among` several, and no more than DSD_THREADS; at least 1. Raises SpecError where
    that is no such number."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota_v2(cgroups / group / "cpu.max") for group in _groups(own_cgroup)]
    quotas.append(_quota_v1(cgroups / "cpu"))
    cores = min([allowed, *(math.ceil(quota) for quota in quotas if quota is not None)])
    return max(1, min([cores // among, *_said()]))


def _said() -> list[int]:
    said = os.environ.get(THREADS, "")
    if said and (not said.isdecimal() or int(said) < 1):
        raise SpecError(f"{THREADS} is {said!r}, which is no number of threads.", hint="Write 1 or more, or unset it.")
    return [int(said)] if said else []


def _groups(own_cgroup: Path) -> list[Path]:
    """The process's group of version 2 and those above it, as far as the process sees them."""
    with suppress(OSError):
        for line in own_cgroup.read_text().splitlines():
            if line.startswith("0::/"):
                group = Path(line.removeprefix("0::/"))
                return [group, *group.parents]
    return []


def _quota_v2(file: Path) -> float | None:
    """Cores; None without a limit."""
    try:
        quota, period = map(int, file.read_text().split())
    except (OSError, ValueError):  # such as "max 100000"
        return None
    return quota / period


def _quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None  # -1 without a limit
