"""A training process forked from one that has torch imported is as good as one started anew, and as mortal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from tests.core.small import small_spec
from tests.worker.service import OFFER, Service, runs, until
from worker import launch
from worker.fork_server import ForkServer
from worker.slot import Slot

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="training processes are forked on Linux")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One for all tests, for it takes seconds to import torch."""
    server = ForkServer()
    server.boot()
    yield server
    server.close()


@pytest.fixture
def ready(server: ForkServer) -> ForkServer:
    """The same, alive and with torch imported."""
    server.boot()
    until(lambda: server.ready)
    return server


def slot_of(service: Service, server: ForkServer) -> Slot:
    return Slot(service.settings, OFFER, server=server)


def started(slot: Slot, folder: Path, *, job_id: str = "job_warm", epochs: int = 1) -> launch.Child:
    folder.mkdir()
    (folder / "job.json").write_text(small_spec(train__epochs=epochs).model_dump_json())
    arguments = [str(folder / "job.json"), "--out", str(folder)]
    return slot.start(arguments, job_id=job_id, fence=4, log=folder / "log.txt", processes=1)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def weights_of(folder: Path) -> str:
    return sha256((folder / "student" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_warm_start_ends_with_the_weights_of_a_cold_one(service: Service, ready: ForkServer, tmp_path: Path) -> None:
    cold = started(slot_of(service, ForkServer()), tmp_path / "cold")
    warm = started(slot_of(service, ready), tmp_path / "warm")
    assert psutil.Process(warm.pid).ppid() == ready.pid
    assert (cold.wait(200), warm.wait(200)) == (0, 0), (tmp_path / "warm" / "log.txt").read_text()
    assert weights_of(tmp_path / "warm") == weights_of(tmp_path / "cold")
    events = [json.loads(line)["type"] for line in (tmp_path / "warm" / "events.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("started", "finished")


def test_what_is_forked_from_has_one_thread(ready: ForkServer) -> None:
    """A lock held by another thread at the fork would be held for ever. (OpenBLAS ends its own before a fork.)"""
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert psutil.Process(ready.pid).num_threads() == 1


def test_a_forked_process_has_its_own_session_log_and_name_in_proc(
    service: Service, ready: ForkServer, tmp_path: Path
) -> None:
    child = started(slot_of(service, ready), tmp_path / "job", epochs=1000)
    until(lambda: (tmp_path / "job" / "events.jsonl").exists())
    shown = psutil.Process(child.pid).environ()
    assert (shown["JOB_ID"], shown["JOB_FENCE"]) == ("job_warm", "4")
    assert os.getsid(child.pid) == child.pid
    assert os.path.samefile(f"/proc/{child.pid}/fd/2", tmp_path / "job" / "log.txt")
    assert launch.end_leftovers("job_warm", fence=5) == 1
    assert child.wait(30) == -signal.SIGKILL


def test_a_forked_process_that_is_asked_to_stop_writes_its_checkpoint(
    service: Service, ready: ForkServer, tmp_path: Path
) -> None:
    child = started(slot_of(service, ready), tmp_path / "job", epochs=1000)
    until(lambda: '"progress"' in read(tmp_path / "job" / "events.jsonl"))
    launch.ask_to_stop(child)
    assert child.wait(60) == 75
    assert list((tmp_path / "job" / "checkpoints").iterdir())


def test_a_bad_job_file_ends_a_forked_process_as_it_ends_any(ready: ForkServer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    log = tmp_path / "log.txt"
    pid = ready.fork(["run", str(bad), "--out", str(tmp_path / "out")], {"JOB_ID": "bad"}, log, ["JOB_ID"])
    assert ready.wait(pid, 60) == 78
    assert "error:" in log.read_text()


def test_a_process_is_started_anew_where_the_server_is_gone_and_the_next_one_is_warm_again(
    service: Service, ready: ForkServer, tmp_path: Path
) -> None:
    slot = slot_of(service, ready)
    warm = started(slot, tmp_path / "warm", epochs=1000)
    first = ready.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert warm.wait(30) == -signal.SIGKILL
    launch.kill(warm)
    cold = started(slot, tmp_path / "cold", epochs=1000)
    assert psutil.Process(cold.pid).ppid() == os.getpid()
    launch.kill(cold)
    slot.warm_up()
    assert ready.pid not in (None, first)


def test_server_and_training_process_die_with_the_worker(tmp_path: Path) -> None:
    """The worker is killed while its server still imports torch: nothing is left then either."""
    boots = (
        "from worker.fork_server import ForkServer; server = ForkServer(); server.boot(); print(server.pid, flush=True)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", f"{boots}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin and worker.stdout
    pid = int(worker.stdout.readline())
    assert runs(pid)
    worker.kill()
    worker.wait(30)
    worker.stdin.close()
    worker.stdout.close()
    until(lambda: not runs(pid))


def test_a_worker_that_is_told_not_to_keeps_no_server(service: Service) -> None:
    settings = service.settings.model_copy(update={"warm": False})
    slot = Slot(settings, OFFER)
    slot.warm_up()
    assert slot.server.pid is None
