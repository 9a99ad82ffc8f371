"""`python -m tests.faults.nursery`: forks Celery workers that have everything imported, most of what a start takes.

One killed each second would else cost a machine of two cores more than all jobs together. Each line of stdin is the
JSON list of a worker's name and log file; the answer on stdout is the pid of a process that is what
`celery -A tests.faults.bare_tasks worker` would be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dsd_core.parent_death import die_with, die_with_parent

if TYPE_CHECKING:
    from tests.worker.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]

OPTIONS = ("-P", "prefork", "-c", "1", "--without-gossip", "--without-mingle", "-O", "fair", "-l", "warning")


class Newborn:
    """A worker that the nursery has forked, to be treated as if this process had started it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while psutil.pid_exists(self.pid):  # the nursery leaves no zombies
            assert time.monotonic() < deadline, f"process {self.pid} does not end"
            time.sleep(0.01)


class Nursery:
    """The process that forks, which the kernel ends with this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def worker(self, name: str, log: Path) -> Newborn:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, str(log)]).encode() + b"\n")
        self._process.stdin.flush()
        return Newborn(int(self._process.stdout.readline()))


@contextmanager
def nursery(fleet: Fleet) -> Iterator[Nursery]:
    """A nursery for workers of this service; call it from the main thread."""
    with open(fleet.logs / "nursery.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=fleet.environment(),
            cwd=ROOT,
            preexec_fn=die_with_parent(),
        )
    with process:
        yield Nursery(process)
        process.kill()


def main() -> None:
    from tests.faults.bare_tasks import app

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nursery = os.getpid()
    for line in sys.stdin:
        name, log = json.loads(line)
        if (pid := os.fork()) == 0:
            _become(nursery, log)
            app.worker_main(["worker", "-n", name, *OPTIONS])
            os._exit(0)
        print(pid, flush=True)


def _become(nursery: int, log: str) -> None:
    die_with(nursery)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (os.open(os.devnull, os.O_RDONLY), output, output):
        os.dup2(descriptor, 0 if descriptor != output else 1)
    os.dup2(output, 2)


if __name__ == "__main__":
    main()
