"""One attempt at a job: what the database says afterwards, whatever the training process did."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from sqlalchemy import text

from jobs import db, store
from jobs.status import Reason, Status
from tests.worker.service import RunningWorker, Service, runs, until

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
    worker = in_background(job, settings=service.settings.model_copy(update={"grace_s": 0.3}))
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
    worker.stopping.set()
    assert worker.reason() == Reason.RELEASED
    row = service.row(job)
    assert (row.status, row.attempt, row.releases) == (Status.QUEUED, 1, 1)
    assert service.run(job) == Reason.FINISHED
    assert service.row(job).run_seconds > row.run_seconds


def test_a_training_process_that_was_killed_is_tried_again_and_goes_on(service: Service) -> None:
    job = service.submit("steps=2 killed_first finish")
    assert service.run(job) == Reason.CRASHED
    row = service.row(job)
    assert (row.status, row.attempt) == (Status.QUEUED, 2)
    assert service.run(job, attempt=1) is None
    assert service.run(job, attempt=2) == Reason.FINISHED
    assert len(service.events(job, "started")) == 2


def test_a_process_that_is_always_killed_fails_after_the_last_attempt(service: Service) -> None:
    job = service.submit("killed", max_attempts=2)
    service.run(job, attempt=1)
    service.run(job, attempt=2)
    row = service.row(job)
    assert (row.status, row.reason) == (Status.FAILED, Reason.CRASHED)
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
    assert service.run(job) == Reason.CRASHED
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
    settings = service.settings.model_copy(update={"heartbeat_s": 60})
    in_background(job, settings=settings)
    until(lambda: service.pids(job))
    with db.begin(service.engine) as s:
        s.execute(text("UPDATE jobs SET lease_expires_at = NULL"))
        store.expire_leases(s)
    assert service.run(job, attempt=2) == Reason.FINISHED
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
