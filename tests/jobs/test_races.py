"""Threads that do two things at once, on real databases. Whoever commits first decides, and both hear the truth."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from jobs import db, store
from jobs.status import Reason, Status
from jobs.store import Claim
from tests.jobs.builders import LEASE_S, a_queued_job, a_running_job, a_spec, claim_next, job, moves, outbox

T = TypeVar("T")


def together(engine: Engine, *works: Callable[[Session], T]) -> list[T]:
    """Run each work in a transaction of its own, all begun at the same moment."""
    barrier = Barrier(len(works))

    def run(work: Callable[[Session], T]) -> T:
        barrier.wait(30)
        with db.begin(engine) as s:
            return work(s)

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def claim(job_id: str, worker: str) -> Callable[[Session], Claim | None]:
    return lambda s: store.claim(s, job_id, 1, worker, LEASE_S)


def cancel(job_id: str) -> Callable[[Session], str | None]:
    def work(s: Session) -> str | None:
        try:
            return store.request_cancel(s, job_id).status
        except store.NotCancellable:
            return None

    return work


@pytest.mark.fault("F38")
@pytest.mark.parametrize("times", [50, pytest.param(500, marks=pytest.mark.faults_only)])
def test_of_two_claimers_exactly_one_wins_every_time(engine: Engine, times: int) -> None:
    for _ in range(times):
        job_id = a_queued_job(engine)
        claims = together(engine, claim(job_id, "worker-1"), claim(job_id, "worker-2"))
        (winner,) = [won for won in claims if won is not None]
        assert (job(engine, job_id).worker, job(engine, job_id).fence) == (winner.worker, 1)


@pytest.mark.fault("F37")
def test_twenty_submissions_with_one_key_make_one_job(engine: Engine) -> None:
    submissions = together(
        engine, *20 * [lambda s: store.submit(s, a_spec(), max_attempts=1, idempotency_key="the-key")]
    )
    assert len({row.id for row, _ in submissions}) == 1
    assert sum(created for _, created in submissions) == 1
    with db.reading(engine) as s:
        assert len(store.list_page(s, limit=50)[0]) == 1
    assert len(outbox(engine)) == 1


def test_twenty_submissions_without_key_make_twenty_jobs(engine: Engine) -> None:
    submissions = together(engine, *20 * [lambda s: store.submit(s, a_spec(), max_attempts=1)])
    assert len({row.id for row, _ in submissions}) == 20


@pytest.mark.fault("F35")
def test_cancelling_a_job_that_finishes_has_one_truthful_end(engine: Engine) -> None:
    for _ in range(50):
        held = a_running_job(engine)
        answer, ended = together(
            engine,
            cancel(held.job_id),
            lambda s, c=held: store.finish(s, c, Reason.FINISHED, result={}, run_seconds=0.0),
        )
        expected = Status.CANCELLED if answer == "cancelling" else Status.SUCCEEDED
        assert ended is expected and job(engine, held.job_id).status == expected
        assert sum(to in ("cancelled", "succeeded", "failed") for _, to in moves(engine, held.job_id)) == 1


@pytest.mark.fault("F36")
def test_cancelling_a_job_that_is_being_claimed_has_one_truthful_end(engine: Engine) -> None:
    for _ in range(50):
        job_id = a_queued_job(engine)
        answer, won = together(engine, cancel(job_id), claim(job_id, "worker-1"))
        assert answer == ("cancelling" if won else "cancelled") == job(engine, job_id).status


@pytest.mark.parametrize("reason", [Reason.FINISHED, Reason.CRASHED])
def test_a_lapsed_job_is_either_kept_or_taken_never_both(engine: Engine, reason: Reason) -> None:
    for _ in range(25):
        job_id = a_queued_job(engine)
        with db.begin(engine) as s:
            held = store.claim(s, job_id, 1, "worker-1", lease_s=-1)
        taken, ended = together(
            engine, store.expire_leases, lambda s, c=held: store.finish(s, c, reason, run_seconds=0.0)
        )
        assert (taken == [job_id]) is (ended is None)
        assert len(moves(engine, job_id)) == 3


@pytest.mark.fault("F9")
def test_two_controllers_take_each_lapsed_job_once(engine: Engine) -> None:
    ids = [a_queued_job(engine) for _ in range(10)]
    for job_id in ids:
        with db.begin(engine) as s:
            store.claim(s, job_id, 1, "worker-1", lease_s=-1)
    first, second = together(engine, store.expire_leases, store.expire_leases)
    assert sorted(first + second) == ids
    assert all(job(engine, job_id).attempt == 2 for job_id in ids)


@pytest.mark.fault("F38")
def test_workers_that_look_for_work_at_once_each_get_a_job_of_their_own(engine: Engine) -> None:
    ids = sorted(a_queued_job(engine) for _ in range(60))

    def claim_fifteen(worker: str) -> list[Claim | None]:
        return [claim_next(engine, worker=worker) for _ in range(15)]

    with ThreadPoolExecutor(4) as pool:
        won = [claim for claims in pool.map(claim_fifteen, "abcd") for claim in claims]
    assert sorted(claim.job_id for claim in won if claim is not None) == ids
