"""Real worker and controller processes on a real broker, ended at the worst moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from jobs import queue
from jobs.status import Drain, Reason, Status
from tests.servers import ROOT
from tests.worker.fleet import QUICK, Fleet
from tests.worker.service import OFFER, Service, runs, until
from worker.ears import heard_by


@pytest.fixture
def fleet(service: Service, broker_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(service.settings.model_copy(update={"broker_url": broker_url, **QUICK}), tmp_path)
    yield fleet
    fleet.end()


def test_a_submitted_job_is_announced_run_and_finished(service: Service, fleet: Fleet) -> None:
    job = service.submit("steps=2 finish")
    controller = fleet.controller()
    worker = fleet.worker("one")
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert service.row(job).worker == "celery@one"
    queue.publish(fleet.app, job, 1)
    until(lambda: fleet.log("one").count("dsd.run_job") >= 2)
    worker.send_signal(signal.SIGTERM)
    controller.send_signal(signal.SIGTERM)
    assert (worker.wait(60), controller.wait(60)) == (0, 0)
    assert len(service.pids(job)) == 1


@pytest.mark.fault("F1")
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


@pytest.mark.fault("F2")
def test_a_pool_process_that_is_killed_costs_an_attempt_and_its_worker_lives_on(service: Service, fleet: Fleet) -> None:
    job = service.submit("hang_first finish")
    fleet.controller()
    worker = fleet.worker("one")
    until(lambda: service.has_noted(job, "hanging"))
    psutil.Process(worker.pid).children()[0].kill()
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    assert service.row(job).attempt == 2
    assert worker.poll() is None


@pytest.mark.parametrize(
    "everyone", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["main_process", "all_processes"]
)
@pytest.mark.fault("F4")
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


@pytest.mark.fault("F3")
def test_a_training_process_that_is_killed_is_missed_within_a_second_and_leaves_no_core_file(
    service: Service, fleet: Fleet
) -> None:
    job = service.submit("hang_first finish")
    fleet.controller()
    fleet.worker("one")
    until(lambda: service.has_noted(job, "hanging"))
    (pid,) = service.pids(job)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0", limits)
    os.kill(pid, signal.SIGKILL)
    killed_at = datetime.now(UTC)
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    moves = [event for event in service.events(job, "status") if event.data["reason"] == Reason.OOM_SUSPECTED]
    assert (moves[0].at - killed_at).total_seconds() < 1
    assert service.row(job).attempt == 2


@pytest.mark.slow
@pytest.mark.fault("F41")
def test_a_job_that_kills_its_worker_each_time_is_tried_as_often_as_it_may_be_and_others_go_on(
    service: Service, fleet: Fleet
) -> None:
    poison = service.submit("kill_worker", max_attempts=3)
    fleet.controller()
    fleet.worker("one", lease_s=1)
    until(lambda: service.pids(poison))
    healthy = service.submit("finish")
    until(lambda: service.row(poison).status == Status.FAILED)
    assert service.row(poison).reason == Reason.WORKER_LOST
    assert len(service.pids(poison)) == 3
    until(lambda: service.row(healthy).status == Status.SUCCEEDED)


def test_a_job_runs_where_its_label_is_though_its_message_went_elsewhere(service: Service, fleet: Fleet) -> None:
    fleet.worker("plain")
    fleet.worker("labelled", worker_labels="disk=fast")
    until(lambda: len(service.workers()) == 2)
    job = service.submit("finish", resources={"labels": {"disk": "fast"}})
    until(lambda: service.row(job).status == Status.SUCCEEDED)  # no controller has announced it
    assert service.row(job).worker == "celery@labelled"


@pytest.mark.slow
def test_a_worker_that_is_emptied_leaves_messages_to_others_until_it_may_go_on(service: Service, fleet: Fleet) -> None:
    worker = fleet.worker("one")
    until(lambda: service.workers())
    service.drain("celery@one", Drain.AFTER_JOB)
    until(lambda: fleet.queues_of("one") == [])
    job = service.submit("finish")
    service.drain("celery@one", None)
    until(lambda: service.row(job).status == Status.SUCCEEDED)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_worker_that_has_gone_deaf_ends_so_that_it_is_started_anew(service: Service, fleet: Fleet) -> None:
    worker = fleet.worker("one", deaf_s=0.5)
    until(lambda: fleet.queues_of("one"))
    for name in heard_by(replace(OFFER, worker="celery@one")):
        fleet.app.control.cancel_consumer(name)
    until(lambda: fleet.queues_of("one") == [])
    service.submit("finish")
    assert worker.wait(30) == 1
    assert "worker.deaf" in fleet.log("one")


def test_the_workers_module_loads_neither_mlflow_nor_torch() -> None:
    code = "import sys, worker.tasks; print(sorted({'mlflow', 'torch', 'onnxruntime', 'fastapi'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def test_a_worker_without_a_broker_says_what_is_missing(tmp_path: Path) -> None:
    for arguments in (["celery", "-A", "worker.tasks", "worker"], ["worker.controller"]):
        said = refused(arguments, tmp_path, DSD_BROKER_URL="")
        assert "DSD_BROKER_URL is not set" in said


def test_a_worker_whose_gpu_is_not_there_says_so(tmp_path: Path) -> None:
    said = refused(["celery", "-A", "worker.tasks", "worker"], tmp_path, DSD_BROKER_URL="memory://", DSD_DEVICES="77")
    assert "DSD_DEVICES names GPU 77" in said


def refused(arguments: list[str], home: Path, **environment: str) -> str:
    """What a program that does not start says on stderr."""
    environment = {**os.environ, "DSD_HOME": str(home), **environment}
    said = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert said.returncode != 0
    return said.stderr
