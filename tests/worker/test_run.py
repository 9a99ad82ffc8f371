"""One attempt at a job: what the database says afterwards, whatever the training process did."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread

import psutil
import pytest
from sqlalchemy import text

from jobs import db, store
from jobs.status import Drain, Reason, Status
from tests.worker.service import RunningWorker, Service, runs, until
from worker import run

Start = Callable[..., RunningWorker]


def test_a_job_that_finishes_has_its_result_and_its_whole_history(service: Service) -> None:
    job = service.submit("steps=3 finish")
    assert service.run(job) == Reason.FINISHED
    row = service.row(job)
    assert row.status == Status.SUCCEEDED
    assert row.result is not None and row.result["student"]["miou"] == 0.5
    assert row.progress is not None and row.progress["step"] == 3
    assert row.run_seconds > 0
    types = [event.type for event in service.events(job)]
    assert types == [
        *["status", "status", "started", "progress", "progress", "progress"],
        *["picture", "checkpoint", "evaluated", "finished", "status"],
    ]
    assert row.events_offset == (service.folder(job) / "events.jsonl").stat().st_size


def test_second_delivery_of_a_running_job_is_ignored(service: Service, in_background: Start) -> None:
    job = service.submit("wait_for=go finish")
    first = in_background(job)
    until(lambda: service.pids(job))
    assert service.run(job) is None
    (service.folder(job) / "go").touch()
    assert first.reason() == Reason.FINISHED
    assert len(service.pids(job)) == 1


def test_a_message_of_a_finished_job_is_ignored(service: Service) -> None:
    job = service.submit("finish")
    service.run(job)
    assert service.run(job) is None
    assert len(service.pids(job)) == 1


def test_events_are_seen_while_the_job_runs(service: Service, in_background: Start) -> None:
    job = service.submit("steps=5 hang")
    in_background(job)
    until(lambda: len(service.events(job, "progress")) == 5)
    assert service.row(job).status == Status.RUNNING


def test_the_training_process_keeps_teachers_signals_where_the_settings_say(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang")
    in_background(job, signals_bytes=5_000_000)
    until(lambda: service.has_noted(job, "hanging"))
    command = " ".join(psutil.Process(service.pids(job)[0]).cmdline())
    assert f"--store {service.settings.storage_dir}/signals --store-bytes 5000000" in command


def test_a_cancel_reaches_the_training_process(service: Service, in_background: Start) -> None:
    job = service.submit("hang")
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    service.cancel(job)
    assert worker.reason() == Reason.CANCELLED_BY_USER
    assert service.row(job).status == Status.CANCELLED
    assert not runs(service.pids(job)[0])


def test_a_cancel_that_comes_before_the_finish_wins(service: Service, in_background: Start) -> None:
    job = service.submit("wait_for=go finish")
    worker = in_background(job)
    until(lambda: service.pids(job))
    with db.begin(service.engine) as s:
        store.request_cancel(s, job)
        (service.folder(job) / "go").touch()
    worker.reason()
    assert service.row(job).status == Status.CANCELLED
    assert service.row(job).result is None


def test_a_process_that_ignores_the_request_is_killed_after_the_grace(service: Service, in_background: Start) -> None:
    job = service.submit("deaf")
    worker = in_background(job, grace_s=0.3)
    until(lambda: service.has_noted(job, "deaf"))
    service.cancel(job)
    worker.reason()
    assert service.row(job).status == Status.CANCELLED
    assert not runs(service.pids(job)[0])


def test_a_worker_that_shuts_down_gives_the_job_back_without_using_up_an_attempt(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang_first finish", max_attempts=1)
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    worker.board.shutting_down = True
    assert worker.reason() == Reason.RELEASED
    row = service.row(job)
    assert (row.status, row.attempt, row.releases) == (Status.QUEUED, 1, 1)
    assert service.run(job) == Reason.FINISHED
    assert service.row(job).run_seconds > row.run_seconds


def test_a_training_process_that_was_killed_is_tried_again_and_goes_on(service: Service) -> None:
    job = service.submit("steps=2 killed_first finish")
    assert service.run(job) == Reason.OOM_SUSPECTED
    row = service.row(job)
    assert (row.status, row.attempt) == (Status.QUEUED, 2)
    assert service.run(job) == Reason.FINISHED
    assert len(service.events(job, "started")) == 2


def test_a_process_that_is_always_killed_fails_after_the_last_attempt(service: Service) -> None:
    job = service.submit("killed", max_attempts=2)
    service.run(job)
    service.run(job)
    row = service.row(job)
    assert (row.status, row.reason) == (Status.FAILED, Reason.OOM_SUSPECTED)
    assert row.error is not None and "memory" in row.error["message"]


def test_a_failure_carries_cause_remedy_field_and_the_end_of_the_log(service: Service) -> None:
    job = service.submit("diverge")
    assert service.run(job) == Reason.DIVERGED
    row = service.row(job)
    assert row.status == Status.FAILED
    assert row.error == {
        "code": "diverged",
        "message": "The loss is NaN.",
        "hint": "Lower the learning rate.",
        "field": "/train",
        "log_tail": "the loss is NaN",
    }


def test_a_failed_event_of_an_earlier_attempt_says_nothing_about_this_one(service: Service) -> None:
    job = service.submit("killed", max_attempts=1)
    service.folder(job).mkdir(parents=True)
    left = '{"at":"2026-01-01T00:00:00.000Z","type":"failed","code":"diverged","message":"The loss is NaN."}\n'
    (service.folder(job) / "events.jsonl").write_text(left)
    assert service.run(job) == Reason.OOM_SUSPECTED
    assert len(service.events(job, "failed")) == 1


def test_a_job_that_runs_too_long_is_ended(service: Service) -> None:
    job = service.submit("hang", max_runtime_s=0.5)
    assert service.run(job) == Reason.MAX_RUNTIME
    row = service.row(job)
    assert row.status == Status.FAILED
    assert row.error is not None and row.error["field"] == "/max_runtime_s"


def test_a_line_that_is_no_event_becomes_a_note_and_the_job_goes_on(service: Service) -> None:
    job = service.submit("garbage finish")
    assert service.run(job) == Reason.FINISHED
    assert "not an event" in service.events(job, "note")[0].data["message"]


def test_a_worker_that_lost_its_claim_kills_the_training_process_and_writes_nothing(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang")
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    with db.begin(service.engine) as s:
        s.execute(text("UPDATE jobs SET lease_expires_at = NULL"))
        assert store.expire_leases(s) == [job]
    assert worker.reason() is None
    assert not runs(service.pids(job)[0])
    row = service.row(job)
    assert (row.status, row.attempt) == (Status.QUEUED, 2)


def test_what_a_lost_attempt_left_running_on_this_host_is_ended_before_the_next(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang_first finish")
    in_background(job, heartbeat_s=60)
    until(lambda: service.pids(job))
    with db.begin(service.engine) as s:
        s.execute(text("UPDATE jobs SET lease_expires_at = NULL"))
        store.expire_leases(s)
    assert service.run(job) == Reason.FINISHED
    assert not runs(service.pids(job)[0])


def test_a_database_that_goes_away_does_not_disturb_the_training(service: Service, in_background: Start) -> None:
    job = service.submit("hang_first wait_for=go steps=4 finish")
    service.folder(job).mkdir(parents=True)
    (service.folder(job) / "tries.txt").write_text("0 None\n")
    worker = in_background(job)
    until(lambda: service.events(job, "started"))
    with db.begin(service.engine) as s:
        s.execute(text("ALTER TABLE jobs RENAME TO away"))
    (service.folder(job) / "go").touch()
    until(lambda: "finished" in (service.folder(job) / "events.jsonl").read_text())
    with db.begin(service.engine) as s:
        s.execute(text("ALTER TABLE away RENAME TO jobs"))
    assert worker.reason() == Reason.FINISHED
    assert len(service.events(job, "progress")) == 4
    assert len(service.pids(job)) == 2


def test_a_storage_that_cannot_be_written_is_named(service: Service) -> None:
    job = service.submit("finish", max_attempts=1)
    service.settings.storage_dir.write_text("a file where the folder should be")
    assert service.run(job) == Reason.STORAGE
    error = service.row(job).error
    assert error is not None and str(service.folder(job)) in error["message"]


def test_a_signal_from_outside_that_the_child_survives_in_order_is_a_release(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang_first finish")
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    os.kill(service.pids(job)[0], signal.SIGTERM)
    assert worker.reason() == Reason.RELEASED
    assert service.row(job).attempt == 1


def test_a_paused_job_leaves_its_worker_and_waits_until_it_is_resumed(service: Service, in_background: Start) -> None:
    job = service.submit("hang_first finish")
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    service.ask(store.request_pause, job)
    assert worker.reason() == Reason.PAUSED
    row = service.row(job)
    assert (row.status, row.attempt, row.releases) == (Status.QUEUED, 1, 0)
    assert service.run(job) is None
    service.ask(store.request_resume, job)
    assert service.run(job) == Reason.FINISHED


def test_a_job_that_is_asked_to_stop_has_as_long_as_it_needs_to_keep_what_it_has(
    service: Service, in_background: Start
) -> None:
    job = service.submit("wait_for_stop wait_for=go finish")
    worker = in_background(job, grace_s=0.0)
    until(lambda: service.pids(job))
    service.ask(store.request_stop, job)
    until(lambda: (service.folder(job) / "asked_to_stop").exists())
    assert service.row(job).status == Status.RUNNING
    (service.folder(job) / "go").touch()
    assert worker.reason() == Reason.STOPPED_EARLY
    row = service.row(job)
    assert row.status == Status.SUCCEEDED and row.result is not None


def test_a_cancel_overrides_a_stop(service: Service, in_background: Start) -> None:
    job = service.submit("wait_for_stop deaf")
    worker = in_background(job, grace_s=0.1)
    until(lambda: service.pids(job))
    service.ask(store.request_stop, job)
    until(lambda: service.has_noted(job, "deaf"))
    service.cancel(job)
    assert worker.reason() == Reason.CANCELLED_BY_USER


@pytest.mark.fault("F6")
def test_a_process_that_stands_still_says_what_its_threads_do_and_is_tried_again(service: Service) -> None:
    job = service.submit("stall_first finish")
    service.settings = service.settings.model_copy(update={"stall_s": 0.3})
    assert service.run(job) == Reason.STALLED
    row = service.row(job)
    assert (row.status, row.attempt) == (Status.QUEUED, 2)
    assert row.error is not None and 'scripted_child.py", line' in row.error["log_tail"]
    assert not runs(service.pids(job)[0])
    assert service.run(job) == Reason.FINISHED


@pytest.mark.fault("F6")
def test_a_process_that_never_comes_to_its_first_step_is_ended_too(service: Service) -> None:
    job = service.submit("deaf")
    service.settings = service.settings.model_copy(update={"first_step_s": 0.3})
    assert service.run(job) == Reason.STALLED


@pytest.mark.fault("F7")
def test_a_job_that_takes_more_memory_than_it_asked_for_is_ended_and_told_how_much(service: Service) -> None:
    job = service.submit("take=400", resources={"memory_gib": 0.25})
    assert service.run(job) == Reason.OUT_OF_MEMORY
    row = service.row(job)
    assert row.status == Status.FAILED
    assert row.error is not None and "0.25 GiB" in row.error["message"]
    assert row.error["field"] == "/resources/memory_gib"
    assert not runs(service.pids(job)[0])


def test_a_job_within_its_memory_is_left_alone(service: Service) -> None:
    job = service.submit("take=1 finish", resources={"memory_gib": 0.25}, max_runtime_s=1.5)
    assert service.run(job) == Reason.MAX_RUNTIME


@pytest.mark.slow
def test_a_job_whose_database_stays_away_writes_a_checkpoint_and_is_left_to_the_controller(
    service: Service, in_background: Start
) -> None:
    job = service.submit("hang_first finish")
    worker = in_background(job, cutoff_s=0.5)
    until(lambda: service.has_noted(job, "hanging"))
    with db.begin(service.engine) as s:
        s.execute(text("ALTER TABLE jobs RENAME TO away"))
    until(lambda: not runs(service.pids(job)[0]))
    assert worker.reason() is None
    with db.begin(service.engine) as s:
        s.execute(text("ALTER TABLE away RENAME TO jobs"))
    assert service.row(job).status == Status.RUNNING


def test_a_worker_that_is_emptied_ends_its_job_and_takes_no_other(service: Service) -> None:
    first, second = service.submit("wait_for=go finish"), service.submit("finish")
    slot = service.slot()
    thread = Thread(target=run.work, args=(slot,))
    thread.start()
    until(lambda: slot.board.job_id == first and service.pids(first))
    slot.board.drain = Drain.AFTER_JOB
    (service.folder(first) / "go").touch()
    thread.join(30)
    assert [service.row(job).status for job in (first, second)] == [Status.SUCCEEDED, Status.QUEUED]
    slot.board.drain = None
    run.work(slot)
    assert service.row(second).status == Status.SUCCEEDED


def test_a_worker_that_is_emptied_at_once_gives_its_job_back(service: Service, in_background: Start) -> None:
    job = service.submit("hang")
    worker = in_background(job)
    until(lambda: service.has_noted(job, "hanging"))
    worker.board.drain = Drain.NOW
    assert worker.reason() == Reason.RELEASED


def test_each_of_several_processes_is_told_to_stop_and_none_is_left(service: Service, in_background: Start) -> None:
    job = service.submit("hang", resources={"processes": 2})
    worker = in_background(job)
    until(lambda: len(service.events(job, "note")) == 2)
    worker.board.shutting_down = True
    assert worker.reason() == Reason.RELEASED
    assert len(service.pids(job)) == 2 and not any(runs(pid) for pid in service.pids(job))


def test_one_of_several_processes_that_dies_ends_the_others(service: Service, in_background: Start) -> None:
    job = service.submit("hang", resources={"processes": 2})
    worker = in_background(job)
    until(lambda: len(service.events(job, "note")) == 2)
    os.kill(service.pids(job)[0], signal.SIGKILL)
    assert worker.reason() == Reason.CRASHED
    assert not any(runs(pid) for pid in service.pids(job))
