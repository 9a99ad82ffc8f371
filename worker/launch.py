"""The training process: one child in its own session, which the kernel ends with the worker, leaving nothing behind.

Linux only where it matters: without `prctl` and /proc a child may outlive a worker that is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
JOB_ID = "JOB_ID"


@dataclass
class Child:
    """A running child, leader of its own session and process group."""

    process: subprocess.Popen[bytes]
    stop_asked_at: float | None = None  # time.monotonic()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, negative for the signal the child died of; None when it still runs after `timeout_s`."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def start(command: Sequence[str], *, job_id: str, log: Path) -> Child:
    """Start `command` with JOB_ID in its environment; what it prints is appended to `log`.

    Call from the main thread: the kernel ends the child with the thread that started it.
    """
    environment = {**os.environ, JOB_ID: job_id, "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),
        )
    return Child(process)


def ask_to_stop(child: Child) -> None:
    """Send SIGTERM, once, to the leader alone: its loader processes must live until its checkpoint is written."""
    if child.stop_asked_at is None:
        child.stop_asked_at = time.monotonic()
        child.process.terminate()


def kill_after(child: Child, grace_s: float) -> None:
    """Kill the whole group once the child was asked to stop and `grace_s` have passed."""
    if child.stop_asked_at is not None and time.monotonic() - child.stop_asked_at >= grace_s:
        kill(child)


def kill(child: Child, timeout_s: float = 10.0) -> None:
    """SIGKILL to the whole group, until it is verified empty; also right for a child that has ended.

    Raises TimeoutError when something in it does not die.
    """
    group = child.process.pid
    _kill_until_none(lambda process: _group(process) == group, timeout_s)
    child.process.wait(timeout_s)


def end_leftovers(job_id: str, timeout_s: float = 10.0) -> int:
    """Kill what an earlier attempt at the job left on this host, found by JOB_ID in its environment.

    Returns how many there were. Raises TimeoutError when one does not die: two must not share a run folder.
    """
    return _kill_until_none(lambda process: process.pid != os.getpid() and _job_of(process) == job_id, timeout_s)


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the worker died before the call, so no signal will come
            os._exit(1)

    return in_child


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


def _job_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(JOB_ID)
    except (psutil.Error, OSError):
        return None  # another user's, or gone


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
