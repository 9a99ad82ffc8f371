"""Pausing, resuming, stopping, retrying: each is a wish on the row, obeyed by who owns the job."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from jobs import db, store
from jobs.status import Reason, Request, Status
from jobs.store import Claim, Heard
from jobs.tables import JobRow
from tests.jobs.builders import (
    LEASE_S,
    a_queued_job,
    a_running_job,
    cancel,
    claim_next,
    claimed,
    history,
    job,
    lapse,
    moves,
    outbox,
)


def ask(engine: Engine, what: Callable[[Session, str], JobRow], job_id: str) -> JobRow:
    with db.begin(engine) as s:
        return what(s, job_id)


def heard(engine: Engine, claim: Claim) -> Heard | None:
    with db.begin(engine) as s:
        return store.beat(s, claim, LEASE_S)


def released(engine: Engine, claim: Claim, reason: Reason = Reason.PAUSED) -> bool:
    with db.begin(engine) as s:
        return store.release(s, claim, 1.0, reason)


def test_a_paused_job_is_not_claimed_until_it_is_resumed(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    ask(engine, store.request_pause, job_id)
    ask(engine, store.request_pause, job_id)
    assert claim_next(engine) is None and outbox(engine) == []
    with db.begin(engine) as s:
        assert store.claim(s, job_id, 1, "worker-1", LEASE_S) is None
    ask(engine, store.request_resume, job_id)
    assert len(outbox(engine)) == 1
    assert claimed(engine, job_id).attempt == 1
    asked = [event.data["request"] for event in history(engine, job_id) if event.type == "request"]
    assert asked == ["pause", "resume"]


def test_a_running_job_is_paused_by_its_worker_and_keeps_its_attempt(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_pause, claim.job_id)
    assert heard(engine, claim) == Heard(Status.RUNNING, Request.PAUSE)
    assert released(engine, claim)
    row = job(engine, claim.job_id)
    assert (row.status, row.reason, row.attempt, row.releases) == ("queued", "paused", 1, 0)
    assert row.paused_at is not None and row.request is None and claim_next(engine) is None
    ask(engine, store.request_resume, claim.job_id)
    assert claim_next(engine) is not None


def test_a_pause_that_was_taken_back_in_time_queues_the_job_at_once(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_pause, claim.job_id)
    ask(engine, store.request_resume, claim.job_id)
    assert heard(engine, claim) == Heard(Status.RUNNING, None)
    assert released(engine, claim)
    assert job(engine, claim.job_id).paused_at is None and claim_next(engine) is not None


def test_a_pause_holds_although_the_worker_is_lost(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_pause, claim.job_id)
    lapse(engine)
    row = job(engine, claim.job_id)
    assert (row.status, row.attempt) == ("queued", 2)
    assert row.paused_at is not None and claim_next(engine) is None


def test_a_wish_to_stop_outlives_the_loss_of_the_worker(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_stop, claim.job_id)
    ask(engine, store.request_stop, claim.job_id)
    lapse(engine)
    again = claim_next(engine)
    assert again is not None and heard(engine, again) == Heard(Status.RUNNING, Request.STOP)
    with db.begin(engine) as s:
        ended = store.finish(s, again, Reason.STOPPED_EARLY, result={"miou": 0.5}, run_seconds=1.0)
    row = job(engine, again.job_id)
    assert ended is Status.SUCCEEDED and (row.reason, row.result, row.request) == ("stopped_early", {"miou": 0.5}, None)


def test_a_paused_job_that_is_stopped_runs_once_more_to_make_its_result(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_pause, claim.job_id)
    released(engine, claim)
    ask(engine, store.request_stop, claim.job_id)
    again = claim_next(engine)
    assert again is not None and heard(engine, again) == Heard(Status.RUNNING, Request.STOP)


def test_a_cancel_overrules_what_was_asked_before(engine: Engine) -> None:
    claim = a_running_job(engine)
    ask(engine, store.request_stop, claim.job_id)
    cancel(engine, claim.job_id)
    assert heard(engine, claim) == Heard(Status.CANCELLING, Request.CANCEL)
    with db.begin(engine) as s:
        assert store.finish(s, claim, Reason.STOPPED_EARLY, result={}, run_seconds=1.0) is Status.CANCELLED


def test_what_a_job_cannot_do_is_refused_with_its_status(engine: Engine) -> None:
    queued, running, ended = a_queued_job(engine), a_running_job(engine).job_id, a_queued_job(engine)
    cancel(engine, ended)
    ask(engine, store.request_stop, running)
    refused = [
        (store.request_stop, queued, Status.QUEUED, "has not started"),
        (store.request_resume, queued, Status.QUEUED, "not paused"),
        (store.request_pause, running, Status.RUNNING, "already been asked to stop"),
        (store.request_pause, ended, Status.CANCELLED, "cannot be paused"),
        (store.request_stop, ended, Status.CANCELLED, "cannot be stopped"),
        (store.request_resume, ended, Status.CANCELLED, "cannot be resumed"),
        (lambda s, job_id: store.set_priority(s, job_id, 1), ended, Status.CANCELLED, "another priority"),
        (lambda s, job_id: store.retryable(s, job_id)[0], queued, Status.QUEUED, "failed or was cancelled"),
    ]
    for what, job_id, status, message in refused:
        with pytest.raises(store.NotPossible, match=message) as caught:
            ask(engine, what, job_id)
        assert caught.value.status is status
    with pytest.raises(store.JobNotFound):
        ask(engine, store.request_pause, "nothing")


def test_a_retry_is_a_new_job_that_knows_where_to_go_on(engine: Engine) -> None:
    old = a_queued_job(engine, labels={"team": "roads"}, priority=3)
    cancel(engine, old)
    with db.begin(engine) as s:
        row, spec = store.retryable(s, old)
        new, created = store.submit(s, spec, max_attempts=3, retry_of=row.id)
    assert created and (new.retry_of, new.spec_digest, new.labels) == (old, row.spec_digest, {"team": "roads"})
    claim = claim_next(engine)
    assert claim is not None and (claim.job_id, claim.retry_of) == (new.id, old)
    assert moves(engine, old)[-1] == ("queued", "cancelled")


def test_new_labels_are_found_and_old_ones_are_not(engine: Engine) -> None:
    job_id = a_queued_job(engine, labels={"team": "roads", "run": "1"})
    with db.begin(engine) as s:
        store.set_labels(s, job_id, {"team": "rails", "run": None})
    with db.reading(engine) as s:
        found = {pair: [row.id for row in store.list_page(s, limit=9, label=pair)[0]] for pair in LABELS}
    assert found == {("team", "rails"): [job_id], ("team", "roads"): [], ("run", "1"): []}
    assert job(engine, job_id).labels == {"team": "rails"}


LABELS = (("team", "rails"), ("team", "roads"), ("run", "1"))


@pytest.mark.parametrize("reason", [Reason.CRASHED, Reason.OOM_SUSPECTED])
def test_a_job_that_dies_twice_at_the_same_step_is_not_tried_a_third_time(engine: Engine, reason: Reason) -> None:
    def die(claim: Claim, step: int) -> Status | None:
        progress = {"type": "progress", "total_step": step}
        with db.begin(engine) as s:
            store.append_events(s, claim, [(progress, claim.events_offset + 1)])
            return store.finish(s, claim, reason, run_seconds=1.0)

    job_id = a_queued_job(engine, max_attempts=5)
    assert [die(claimed(engine, job_id, n), step) for n, step in ((1, 10), (2, 20), (3, 20))] == [
        Status.QUEUED,
        Status.QUEUED,
        Status.FAILED,
    ]
    assert job(engine, job_id).reason == reason
