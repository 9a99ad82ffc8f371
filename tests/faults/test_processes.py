"""Processes that are killed, stopped or shut down at the worst moment."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from jobs.status import Status
from tests.faults.oracles import job_processes
from tests.faults.site import Site, worker_with_training
from tests.worker.fleet import Process
from tests.worker.service import runs, until

pytestmark = pytest.mark.timeout(180)

DEAD_WITHIN_S = 1.5


def training(site: Site, job: str) -> list[psutil.Process]:
    return job_processes({job})


def kill_training(site: Site, job: str, worker: Process) -> None:
    for process in training(site, job):
        process.kill()


def kill_worker(site: Site, job: str, worker: Process) -> None:
    worker.kill()


def kill_both(site: Site, job: str, worker: Process) -> None:
    worker.kill()
    kill_training(site, job, worker)


@pytest.mark.faults_only
@pytest.mark.fault("F1", "F3")
@pytest.mark.parametrize("kill", [kill_training, kill_worker, kill_both])
def test_a_killed_training_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(
    site: Site, kill: Callable[[Site, str, Process], None]
) -> None:
    job = site.submit_real()
    site.fleet.controller()
    worker = worker_with_training(site, "first")
    until(lambda: len(site.events(job, "checkpoint")) >= 2)
    at_work = training(site, job)
    kill(site, job, worker)
    until(lambda: not any(runs(process.pid) for process in at_work), DEAD_WITHIN_S)
    if worker.poll() is not None:
        worker_with_training(site, "second")
    site.all_end()
    row = site.row(job)
    started = site.events(job, "started")
    assert (row.attempt, len(started)) == (2, 2)
    assert started[1].data["resumed_from"] > 0


def goes_on(site: Site, job: str, done: int) -> None:
    until(lambda: len(site.events(job, "progress")) > done)


@pytest.mark.faults_only
@pytest.mark.fault("F4")
def test_three_shutdowns_of_the_worker_cost_a_job_no_attempt_and_no_step(site: Site) -> None:
    job = site.submit_real()
    site.fleet.controller()
    for number in range(3):
        done = len(site.events(job, "progress"))
        worker = worker_with_training(site, f"worker-{number}")
        goes_on(site, job, done)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert (site.status(job), site.row(job).releases) == (Status.QUEUED, number + 1)
    worker_with_training(site, "last")
    site.all_end()
    assert site.row(job).attempt == 1
    steps = Counter(event.data["total_step"] for event in site.events(job, "progress"))
    assert set(steps.values()) == {1}, "a step that was done before the shutdown was done again after it"


@pytest.mark.faults_only
@pytest.mark.fault("F5")
def test_a_worker_that_was_frozen_finds_its_job_taken_and_changes_nothing(site: Site) -> None:
    job = site.submit("steps=2 hang_first wait_for=go finish")
    site.fleet.controller()
    frozen = site.fleet.worker("frozen")
    until(lambda: site.has_noted(job, "hanging"))
    family = [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children(recursive=True)]
    for process in family:
        process.suspend()
    site.fleet.worker("second")
    until(lambda: len(site.pids(job)) == 2)
    for process in family:
        if process.is_running():
            process.resume()
    until(lambda: "job.lost" in site.fleet.log("frozen"))
    assert not runs(site.pids(job)[0])
    (site.folder(job) / "go").touch()
    site.all_end()
    row = site.row(job)
    assert row.attempt == 2 and "second" in (row.worker or "") and row.result_fence == row.fence
    assert frozen.poll() is None


@pytest.mark.faults_only
@pytest.mark.fault("F8")
def test_controllers_that_die_between_any_two_of_their_steps_lose_no_job_and_double_none(site: Site) -> None:
    for number, point in enumerate(CONTROLLER_POINTS):
        for _ in range(3):
            site.submit("finish")
        controller = site.fleet.controller(f"controller-{number}", fault=f"{point}:kill")
        until(lambda: controller.poll() is not None)  # noqa: B023
        assert controller.returncode == -signal.SIGKILL
    site.fleet.controller("last")
    site.fleet.worker("one")
    site.all_end()
    assert {len(site.pids(job)) for job in site.ledger} == {1}


CONTROLLER_POINTS = (
    "relay.after_take",
    "relay.after_publish",
    "relay.before_mark",
    "relay.after_mark",
    "reconciler.before_commit",
    "reconciler.after_commit",
)


@pytest.mark.faults_only
@pytest.mark.fault("F9")
def test_of_two_controllers_one_may_freeze_and_wake_again_and_no_job_runs_twice(site: Site) -> None:
    first, _ = site.fleet.controller("first"), site.fleet.controller("second")
    site.fleet.worker("one")
    for act in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
        first.send_signal(act)
        for _ in range(4):
            site.submit("finish")
        site.all_end()
    assert {len(site.pids(job)) for job in site.ledger} == {1}


@pytest.mark.faults_only
@pytest.mark.fault("F11")
def test_after_a_power_cut_every_acknowledged_job_goes_on_and_weights_are_the_same(site: Site) -> None:
    api = site.start_api()
    controller = site.fleet.controller()
    worker = worker_with_training(site, "one")
    running = site.submit_real()
    until(lambda: len(site.events(running, "checkpoint")) >= 2)
    waiting = site.submit_real()
    assert site.postgres is not None
    for process in (worker, controller, api):
        process.kill()
    site.valkey.kill()
    site.postgres.end()
    site.postgres.start()
    site.valkey.start()
    site.start_api()
    site.fleet.controller()
    worker_with_training(site, "one")
    site.all_end()
    assert (site.row(running).attempt, site.row(waiting).attempt) == (2, 1)
