"""The training process: in its own session, ended by the kernel with the worker, leaving nothing behind.

A job with several processes has a leader that starts them (torchrun) and is no training process itself; each of them
is in a session of its own, so that what belongs to an attempt is found by the environment all have from the leader.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from dsd_core.parent_death import die_with_parent
from worker.fork_server import ForkServer

JOB_ID = "JOB_ID"
JOB_FENCE = "JOB_FENCE"  # of the claim: the newest attempt has the highest


@dataclass
class Child:
    """A running attempt: the process that was started, and how to ask whether it has ended."""

    pid: int  # also of its session and process group
    ask: Callable[[float], int | None]  # the exit code, None when it still runs after that many seconds
    job_id: str
    fence: int
    several: bool = False  # it only starts those that train
    exit_code: int | None = None
    stop_asked_at: float | None = None  # time.monotonic()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, negative for the signal the child died of; None when it still runs after `timeout_s`."""
        if self.exit_code is None:
            self.exit_code = self.ask(timeout_s)
        return self.exit_code


def start(
    command: Sequence[str],
    *,
    job_id: str,
    log: Path,
    fence: int = 0,
    environment: Mapping[str, str] = MappingProxyType({}),
    several: bool = False,
) -> Child:
    """Start `command` in this environment, with JOB_ID; what it prints is appended to `log`.

    Call from the main thread: the kernel ends the child with the thread that started it.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **_marks(job_id, fence), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )

    def ask(timeout_s: float) -> int | None:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    return Child(process.pid, ask, job_id, fence, several)


def start_warm(
    server: ForkServer, arguments: Sequence[str], *, job_id: str, log: Path, fence: int, environment: Mapping[str, str]
) -> Child:
    """The same for `python -m dsd_core ARGUMENTS`, forked by a process that has torch imported. Raises ServerGone."""
    marks = _marks(job_id, fence)
    pid = server.fork([*arguments], {**environment, **marks}, log, shown=[*marks])
    return Child(pid, lambda timeout_s: server.wait(pid, timeout_s), job_id, fence)


def tell(child: Child, number: signal.Signals) -> None:
    """Send a signal to the process that trains, or to each of them; never to the processes that load data for it."""
    if child.exit_code is None:
        for pid in _trainers(child):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def ask_to_stop(child: Child) -> None:
    """Send SIGTERM, once: a checkpoint, and an end."""
    if child.stop_asked_at is None:
        child.stop_asked_at = time.monotonic()
        tell(child, signal.SIGTERM)


def kill_after(child: Child, grace_s: float) -> None:
    """Kill all of it once the child was asked to stop and `grace_s` have passed."""
    if child.stop_asked_at is not None and time.monotonic() - child.stop_asked_at >= grace_s:
        kill(child)


def kill(child: Child, timeout_s: float = 10.0) -> None:
    """SIGKILL to all of it, until it is verified that none is left; also right for a child that has ended.

    Raises TimeoutError when something in it does not die.
    """

    def is_ours(process: psutil.Process) -> bool:
        return _group(process) == child.pid or _claim_of(process) == (child.job_id, child.fence)

    _kill_until_none(is_ours, timeout_s)
    child.wait(timeout_s)


def end_leftovers(job_id: str, fence: int, timeout_s: float = 10.0) -> int:
    """Kill what earlier attempts at the job left on this host, found by JOB_ID and JOB_FENCE in their environment.

    Returns how many there were. Raises TimeoutError when one does not die: two must not share a run folder.
    """

    def is_older(process: psutil.Process) -> bool:
        found = _claim_of(process)
        return found is not None and found[0] == job_id and found[1] < fence

    return _kill_until_none(is_older, timeout_s)


def _marks(job_id: str, fence: int) -> dict[str, str]:
    return {JOB_ID: job_id, JOB_FENCE: str(fence)}


def _trainers(child: Child) -> list[int]:
    """Those that train, or the one that is still to start them."""
    try:
        started = [process.pid for process in psutil.Process(child.pid).children()] if child.several else []
    except psutil.NoSuchProcess:
        return []
    return started or [child.pid]


def _kill_until_none(doomed: Callable[[psutil.Process], bool], timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    while found := [process for process in _living() if doomed(process)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Processes {[process.pid for process in found]} do not end.")
        for process in found:
            killed.add(process.pid)
            _kill(process)
        time.sleep(0.01)
    return len(killed)


def _living() -> Iterator[psutil.Process]:
    """Every process but zombies, which keep their group and never run again."""
    for process in psutil.process_iter(["status"]):
        if process.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            yield process


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


def _claim_of(process: psutil.Process) -> tuple[str, int] | None:
    """Job and fence of the attempt a process belongs to."""
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None  # another user's, or gone
    return (environment[JOB_ID], int(environment.get(JOB_FENCE, -1))) if JOB_ID in environment else None


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
