"""How much RAM a training process takes, with all it has started."""

from __future__ import annotations

from pathlib import Path

import psutil

KIB = 1024


def taken_over(pid: int, limit_bytes: float) -> int | None:
    """The bytes a process and its descendants take, where that is over the limit; pages they share count once.

    The exact share of each is dear to ask for, so it is asked for only once the sum that counts shared pages for each
    of them is over the limit.
    """
    family = _family(pid)
    if sum(_resident(process) for process in family) <= limit_bytes:
        return None
    taken = sum(_proportional(process) for process in family)
    return taken if taken > limit_bytes else None


def _family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _proportional(process: psutil.Process) -> int:
    """Linux's Pss: a page that n processes share counts as 1/n of it in each. Elsewhere the resident size."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * KIB for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(process)
