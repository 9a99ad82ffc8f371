"""The training process ends when it is told to, ends with its worker, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.worker.service import runs, until
from worker import launch

SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
IGNORES_SIGTERM = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
WITH_A_CHILD = [
    sys.executable,
    "-c",
    "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print('up', p.pid, flush=True); time.sleep(60)",
]


def started(command: list[str], folder: Path, job_id: str = "job_launch", fence: int = 1) -> launch.Child:
    child = launch.start(command, job_id=job_id, fence=fence, log=folder / "log.txt")
    until(lambda: "up" in (folder / "log.txt").read_text())
    return child


def test_output_is_appended_to_the_log_of_earlier_attempts(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("first attempt\n")
    child = launch.start(
        [sys.executable, "-c", "import os, sys; print(os.environ['JOB_ID'], file=sys.stderr)"],
        job_id="job_7",
        log=tmp_path / "log.txt",
    )
    assert child.wait(20) == 0
    assert (tmp_path / "log.txt").read_text() == "first attempt\njob_7\n"


def test_a_child_that_is_asked_to_stop_gets_sigterm(tmp_path: Path) -> None:
    child = started(SLEEPS, tmp_path)
    launch.ask_to_stop(child)
    assert child.wait(20) == -signal.SIGTERM


def test_a_child_that_does_not_stop_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = started(IGNORES_SIGTERM, tmp_path)
    launch.ask_to_stop(child)
    launch.kill_after(child, grace_s=60)
    assert child.wait(0.2) is None
    launch.kill_after(child, grace_s=0)
    assert child.wait(20) == -signal.SIGKILL


def test_a_kill_reaches_the_whole_group(tmp_path: Path) -> None:
    child = started(WITH_A_CHILD, tmp_path)
    grandchild = int((tmp_path / "log.txt").read_text().split()[1])
    launch.kill(child)
    assert not runs(grandchild)


def test_loaders_of_a_child_that_died_are_ended_too(tmp_path: Path) -> None:
    child = started(WITH_A_CHILD, tmp_path)
    grandchild = int((tmp_path / "log.txt").read_text().split()[1])
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    launch.kill(child)
    assert not runs(grandchild)


def test_the_child_dies_with_its_worker(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    prints_its_pid = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from worker import launch\n"
            f"command = [sys.executable, '-c', {prints_its_pid!r}]\n"
            f"child = launch.start(command, job_id='job_8', log=Path({str(log)!r})); time.sleep(60)",
        ]
    )
    until(lambda: log.exists() and log.read_text().strip())
    pid = int(log.read_text())
    worker.kill()
    worker.wait()
    until(lambda: not runs(pid))


def test_what_an_earlier_attempt_left_on_this_host_is_ended_first(tmp_path: Path) -> None:
    earlier = started(SLEEPS, tmp_path, job_id="job_zombie")
    other = started(SLEEPS, tmp_path, job_id="job_other")
    newer = started(SLEEPS, tmp_path, job_id="job_zombie", fence=3)
    assert launch.end_leftovers("job_zombie", fence=3) == 1
    assert earlier.wait(20) == -signal.SIGKILL
    assert other.wait(0) is None
    assert newer.wait(0) is None
    assert launch.end_leftovers("job_zombie", fence=3) == 0
    launch.kill(other)
    launch.kill(newer)
