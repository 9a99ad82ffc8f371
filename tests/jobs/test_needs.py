"""Jobs that wait for others: for all of them, through losses and retries, and not for ever."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from jobs import db, store
from jobs.status import Reason, Status
from jobs.store import Claim
from jobs.store.moves import NeedFailedError
from tests.jobs.builders import a_queued_job, cancel, claim_next, claimed, job, lapse, moves, outbox


def end(engine: Engine, claim: Claim, reason: Reason) -> None:
    with db.begin(engine) as s:
        assert store.finish(s, claim, reason, result={}, run_seconds=1.0)


def test_a_job_starts_when_all_it_needs_have_succeeded(engine: Engine) -> None:
    teacher, other = a_queued_job(engine), a_queued_job(engine)
    student = a_queued_job(engine, needs=[teacher, other])
    assert [message.job_id for message in outbox(engine)] == [teacher, other]
    end(engine, claimed(engine, other), Reason.FINISHED)
    claimed(engine, teacher)
    assert claim_next(engine) is None and job(engine, student).needs_left == 1
    lapse(engine)  # the teacher's worker is lost, and the job is tried again
    end(engine, claimed(engine, teacher, attempt=2), Reason.FINISHED)
    claim = claim_next(engine)
    assert claim is not None and claim.job_id == student


def test_a_job_that_needs_what_has_succeeded_already_does_not_wait(engine: Engine) -> None:
    teacher = a_queued_job(engine)
    end(engine, claimed(engine, teacher), Reason.STOPPED_EARLY)
    student = a_queued_job(engine, needs=[teacher])
    assert [message.job_id for message in outbox(engine)] == [student]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_what_needs_a_job_that_does_not_succeed_fails_with_it_to_the_last(engine: Engine, how: str) -> None:
    teacher = a_queued_job(engine)
    student = a_queued_job(engine, needs=[teacher])
    exported = a_queued_job(engine, needs=[student, teacher])
    if how == "fails":
        end(engine, claimed(engine, teacher), Reason.DIVERGED)
    else:
        cancel(engine, teacher)
    for job_id in (student, exported):
        row = job(engine, job_id)
        assert (row.status, row.reason) == ("failed", "need_failed")
        assert row.error is not None and row.error["code"] == "need_failed" and row.finished_at is not None
        assert moves(engine, job_id) == [(None, "queued"), ("queued", "failed")]
    assert job(engine, student).error["message"].startswith(f"It needs job {teacher}")  # type: ignore[index]
    assert outbox(engine) == []


def test_a_paused_job_stays_paused_when_what_it_needs_has_succeeded(engine: Engine) -> None:
    teacher = a_queued_job(engine)
    student = a_queued_job(engine, needs=[teacher])
    with db.begin(engine) as s:
        store.request_pause(s, student)
    end(engine, claimed(engine, teacher), Reason.FINISHED)
    assert claim_next(engine) is None
    with db.begin(engine) as s:
        store.request_resume(s, student)
    assert claim_next(engine) is not None


def test_needing_a_job_that_cannot_succeed_is_refused(engine: Engine) -> None:
    gone = a_queued_job(engine)
    cancel(engine, gone)
    with pytest.raises(NeedFailedError, match="has been cancelled"):
        a_queued_job(engine, needs=[gone])
    with pytest.raises(store.NeedNotFound, match="does not exist"):
        a_queued_job(engine, needs=["nothing"])
    assert outbox(engine) == []


def test_a_job_that_waits_for_others_can_be_cancelled(engine: Engine) -> None:
    teacher = a_queued_job(engine)
    student = a_queued_job(engine, needs=[teacher])
    assert cancel(engine, student) == Status.CANCELLED
    end(engine, claimed(engine, teacher), Reason.FINISHED)
    assert job(engine, student).status == "cancelled" and claim_next(engine) is None
