from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, update

from jobs import db, store
from jobs.status import OUTCOMES, Reason, Request, Status
from jobs.store import Claim, Heard
from jobs.tables import JobRow
from tests.jobs.builders import (
    LEASE_S,
    a_queued_job,
    a_running_job,
    cancel,
    claimed,
    history,
    job,
    lapse,
    moves,
    outbox,
)

NOTE = {"type": "note", "message": "hello", "at": "2026-01-02T03:04:05.678Z"}


def finish(engine: Engine, claim: Claim, reason: Reason, **fields: object) -> Status | None:
    with db.begin(engine) as s:
        return store.finish(s, claim, reason, run_seconds=1.0, **fields)  # type: ignore[arg-type]


def test_a_second_delivery_of_a_running_job_is_ignored(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        assert store.claim(s, claim.job_id, 1, "worker-2", LEASE_S) is None
    assert job(engine, claim.job_id).worker == "worker-1"


def test_a_message_of_another_attempt_is_ignored(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    with db.begin(engine) as s:
        assert store.claim(s, job_id, 2, "worker-1", LEASE_S) is None
        assert store.claim(s, "nothing", 1, "worker-1", LEASE_S) is None


def test_a_claim_raises_the_fence_and_takes_the_message_away(engine: Engine) -> None:
    claim = a_running_job(engine)
    row = job(engine, claim.job_id)
    assert (claim.attempt, claim.fence, claim.run_seconds, claim.events_offset) == (1, 1, 0.0, 0)
    assert (row.status, row.fence, row.spec, row.started_at) == ("running", 1, claim.spec, row.heartbeat_at)
    assert outbox(engine) == []


def test_a_beat_prolongs_the_lease(engine: Engine) -> None:
    claim = a_running_job(engine)
    before = job(engine, claim.job_id).lease_expires_at
    with db.begin(engine) as s:
        assert store.beat(s, claim, 2 * LEASE_S) == Heard(Status.RUNNING, None)
    after = job(engine, claim.job_id).lease_expires_at
    assert before and after and (after - before).total_seconds() >= LEASE_S


def test_a_beat_brings_the_wish_to_cancel(engine: Engine) -> None:
    claim = a_running_job(engine)
    cancel(engine, claim.job_id)
    with db.begin(engine) as s:
        assert store.beat(s, claim, LEASE_S) == Heard(Status.CANCELLING, Request.CANCEL)


def test_only_a_lapsed_lease_is_taken_away(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        assert store.expire_leases(s) == []
    assert lapse(engine) == [claim.job_id]
    assert lapse(engine) == []


def test_a_lease_without_an_end_counts_as_lapsed(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        s.execute(update(JobRow).values(lease_expires_at=None, heartbeat_at=None))
        assert store.expire_leases(s) == [claim.job_id]


def test_a_lost_worker_costs_an_attempt_and_the_job_is_announced_again(engine: Engine) -> None:
    claim = a_running_job(engine)
    lapse(engine)
    row = job(engine, claim.job_id)
    assert (row.status, row.reason, row.attempt, row.fence, row.worker) == ("queued", "worker_lost", 2, 2, None)
    assert [(m.job_id, m.attempt) for m in outbox(engine)] == [(claim.job_id, 2)]
    assert history(engine, claim.job_id)[-1].data == {
        "from": "running",
        "to": "queued",
        "reason": "worker_lost",
        "attempt": 2,
        "fence": 2,
        "worker": "worker-1",
    }


def test_a_worker_lost_on_the_last_attempt_fails_the_job(engine: Engine) -> None:
    claim = a_running_job(engine, max_attempts=1)
    lapse(engine)
    row = job(engine, claim.job_id)
    assert (row.status, row.reason, row.attempt) == ("failed", "worker_lost", 1)
    assert row.error and "worker-1" in row.error["message"] and row.error["code"] == "worker_lost"


def test_a_worker_lost_while_cancelling_cancels_the_job(engine: Engine) -> None:
    claim = a_running_job(engine)
    cancel(engine, claim.job_id)
    lapse(engine)
    assert (job(engine, claim.job_id).status, job(engine, claim.job_id).reason) == ("cancelled", "cancelled_by_user")


def test_time_of_lost_attempts_counts_as_running(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        row = store.get(s, claim.job_id)
        assert row is not None and row.heartbeat_at is not None
        row.heartbeat_at = datetime.fromtimestamp(row.heartbeat_at.timestamp() + 100, UTC)
    lapse(engine)
    assert job(engine, claim.job_id).run_seconds == pytest.approx(100, abs=0.1)
    assert claimed(engine, claim.job_id, attempt=2).run_seconds == pytest.approx(100, abs=0.1)


def test_a_lost_claim_changes_nothing(engine: Engine) -> None:
    stale = a_running_job(engine)
    lapse(engine)
    current = claimed(engine, stale.job_id, attempt=2, worker="worker-2")
    before = history(engine, stale.job_id), job(engine, stale.job_id).updated_at
    with db.begin(engine) as s:
        assert store.beat(s, stale, LEASE_S) is None
        assert store.append_events(s, stale, [(NOTE, 10)]) is False
        assert store.finish(s, stale, Reason.FINISHED, result={"miou": 1.0}, run_seconds=1.0) is None
        assert store.release(s, stale, 1.0) is False
    after = history(engine, stale.job_id), job(engine, stale.job_id).updated_at
    assert len(before[0]) == len(after[0]) and before[1] == after[1]
    assert finish(engine, current, Reason.FINISHED) is Status.SUCCEEDED


def test_a_lapsed_lease_that_nobody_took_can_still_be_renewed(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    with db.begin(engine) as s:
        claim = store.claim(s, job_id, 1, "worker-1", lease_s=-1)
        assert claim is not None
        assert store.beat(s, claim, LEASE_S) == Heard(Status.RUNNING, None)
        assert store.expire_leases(s) == []


def test_a_finished_job_keeps_its_result_and_whose_it_is(engine: Engine) -> None:
    claim = a_running_job(engine)
    assert finish(engine, claim, Reason.FINISHED, result={"miou": 0.5}) is Status.SUCCEEDED
    row = job(engine, claim.job_id)
    assert (row.result, row.result_fence, row.reason, row.error) == ({"miou": 0.5}, claim.fence, "finished", None)
    assert row.lease_expires_at is None and row.finished_at is not None and row.run_seconds == 1.0
    assert finish(engine, claim, Reason.FINISHED) is None


@pytest.mark.parametrize("reason", sorted(set(OUTCOMES) - {Reason.CANCELLED_BY_USER, Reason.RELEASED}))
def test_each_reason_ends_or_repeats_a_run_as_the_table_says(sqlite_engine: Engine, reason: Reason) -> None:
    expected = Status.QUEUED if OUTCOMES[reason].retry else OUTCOMES[reason].status
    assert finish(sqlite_engine, a_running_job(sqlite_engine), reason, error={"code": reason}) is expected
    assert (
        finish(sqlite_engine, a_running_job(sqlite_engine, max_attempts=1), reason, error={"code": reason})
        is OUTCOMES[reason].status
    )


@pytest.mark.parametrize("reason", sorted(OUTCOMES))
def test_a_cancelling_job_becomes_cancelled_however_it_ends(sqlite_engine: Engine, reason: Reason) -> None:
    claim = a_running_job(sqlite_engine)
    cancel(sqlite_engine, claim.job_id)
    assert finish(sqlite_engine, claim, reason, result={"miou": 1.0}) is Status.CANCELLED
    row = job(sqlite_engine, claim.job_id)
    assert (row.reason, row.result) == ("cancelled_by_user", None)


def test_a_released_job_keeps_its_attempt(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        assert store.release(s, claim, 7.0) is True
    row = job(engine, claim.job_id)
    assert (row.status, row.reason, row.attempt, row.releases, row.run_seconds) == ("queued", "released", 1, 1, 7.0)
    assert claimed(engine, claim.job_id, attempt=1).fence == claim.fence + 2


def test_a_job_released_without_end_comes_to_an_end(sqlite_engine: Engine) -> None:
    job_id = a_queued_job(sqlite_engine, max_attempts=2)
    rounds = 0
    while (row := job(sqlite_engine, job_id)).status == "queued":
        claim = claimed(sqlite_engine, job_id, row.attempt)
        with db.begin(sqlite_engine) as s:
            store.release(s, claim, 0.0)
        rounds += 1
    assert (row.status, row.reason, rounds) == ("failed", "released", 22)


def test_releasing_a_cancelling_job_cancels_it(engine: Engine) -> None:
    claim = a_running_job(engine)
    cancel(engine, claim.job_id)
    with db.begin(engine) as s:
        assert store.release(s, claim, 0.0) is True
    assert moves(engine, claim.job_id)[-1] == ("cancelling", "cancelled")


def test_events_are_copied_once_however_often_they_are_sent(engine: Engine) -> None:
    claim = a_running_job(engine)
    batch = [(NOTE, 10), ({"type": "progress", "step": 1}, 20)]
    with db.begin(engine) as s:
        assert store.append_events(s, claim, batch)
    with db.begin(engine) as s:
        assert store.append_events(s, claim, [*batch, ({"type": "progress", "step": 2}, 30)])
    copied = [e for e in history(engine, claim.job_id) if e.type != "status"]
    assert [(e.seq, e.data) for e in copied] == [
        (3, NOTE),
        (4, {"type": "progress", "step": 1}),
        (5, {"type": "progress", "step": 2}),
    ]
    row = job(engine, claim.job_id)
    assert (row.progress, row.events_offset, row.last_seq) == ({"type": "progress", "step": 2}, 30, 5)


def test_an_event_keeps_the_time_its_process_gave_it(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        store.append_events(s, claim, [(NOTE, 10), ({"type": "note", "at": "yesterday"}, 20)])
    given, missing = history(engine, claim.job_id)[-2:]
    assert given.at == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    assert abs((missing.at - job(engine, claim.job_id).created_at).total_seconds()) < 60


def test_the_next_attempt_reads_events_on_from_where_the_last_one_stopped(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        store.append_events(s, claim, [(NOTE, 10)])
    lapse(engine)
    assert claimed(engine, claim.job_id, attempt=2).events_offset == 10
