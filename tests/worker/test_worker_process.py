"""Real worker and controller processes on a real broker, ended at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs import queue
from jobs.status import Status
from tests.servers import ROOT
from tests.worker.fleet import QUICK, Fleet
from tests.worker.service import Service, runs, until


@pytest.fixture
def fleet(service: Service, broker_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(service.settings.model_copy(update={"broker_url": broker_url, **QUICK}), tmp_path)
    yield fleet
    fleet.end()


def test_a_submitted_job_is_announced_run_and_finished(service: Service, fleet: Fleet, broker_url: str) -> None:
    job = service.submit("steps=2 finish")
    controller = fleet.controller()
    worker = fleet.worker("one")
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert (service.row(job).worker or "").startswith("celery@one/") or (service.row(job).worker or "").startswith(
        "one"
    )
    queue.publish(queue.make_app(broker_url), job, 1)
    until(lambda: fleet.log("one").count("dsd.run_job") >= 2)
    worker.send_signal(signal.SIGTERM)
    controller.send_signal(signal.SIGTERM)
    assert (worker.wait(60), controller.wait(60)) == (0, 0)
    assert len(service.pids(job)) == 1


def test_a_worker_that_is_killed_loses_its_job_to_another_which_goes_on(service: Service, fleet: Fleet) -> None:
    job = service.submit("steps=2 hang_first finish")
    fleet.controller()
    first = fleet.worker("first")
    until(lambda: service.has_noted(job, "hanging"))
    first.kill()
    first.wait(60)
    until(lambda: not runs(service.pids(job)[0]))
    fleet.worker("second")
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert service.row(job).attempt == 2
    assert "second" in (service.row(job).worker or "")


def test_a_pool_process_that_is_killed_costs_an_attempt_and_its_worker_lives_on(service: Service, fleet: Fleet) -> None:
    job = service.submit("hang_first finish")
    fleet.controller()
    worker = fleet.worker("one")
    until(lambda: service.has_noted(job, "hanging"))
    psutil.Process(int((service.row(job).worker or "").split("/")[1])).kill()
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert service.row(job).attempt == 2
    assert worker.poll() is None


@pytest.mark.parametrize("everyone", [False, True], ids=["main_process", "all_processes"])
def test_a_worker_that_is_terminated_gives_its_job_back_and_ends(
    service: Service, fleet: Fleet, everyone: bool
) -> None:
    job = service.submit("hang_first finish", max_attempts=1)
    fleet.controller()
    worker = fleet.worker("first")
    until(lambda: service.has_noted(job, "hanging"))
    pool = psutil.Process(worker.pid).children()
    worker.send_signal(signal.SIGTERM)
    for process in pool if everyone else []:
        process.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    row = service.row(job)
    assert (row.status, row.attempt, row.releases) == (Status.QUEUED, 1, 1)
    fleet.worker("second")
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert service.row(job).attempt == 1


def test_the_workers_module_loads_neither_mlflow_nor_torch() -> None:
    code = "import sys, worker.tasks; print(sorted({'mlflow', 'torch', 'onnxruntime', 'fastapi'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def test_a_worker_without_a_broker_says_what_is_missing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DSD_BROKER_URL"}
    for arguments in (["celery", "-A", "worker.tasks", "worker"], ["worker.controller"]):
        said = subprocess.run(
            [sys.executable, "-m", *arguments],
            capture_output=True,
            text=True,
            env={**environment, "DSD_HOME": str(tmp_path)},
            cwd=ROOT,
            timeout=60,
        )
        assert said.returncode != 0
        assert "DSD_BROKER_URL is not set" in said.stderr
