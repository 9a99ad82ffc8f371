"""People and workers that do two things at the same moment, and clocks that are wrong."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import httpx
import pytest

from jobs import db, store
from jobs.status import TERMINAL, Reason, Status
from tests.faults.site import Site
from tests.faults.test_broker import each_ran_once
from tests.jobs.builders import LEASE_S
from tests.worker.fleet import QUICK
from tests.worker.service import OFFER, until

pytestmark = pytest.mark.timeout(240)


@pytest.mark.faults_only
@pytest.mark.fault("F35")
def test_a_cancel_that_was_accepted_over_http_never_ends_in_success_and_one_that_was_refused_always_does(
    site: Site,
) -> None:
    dice = random.Random(0)
    site.start_api()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(300):
            job = site.submit("by hand")
            with db.begin(site.engine) as s:
                claim = store.claim_next(s, OFFER, LEASE_S)
            assert claim is not None and claim.job_id == job
            barrier, early_s = Barrier(2), dice.uniform(-0.004, 0.012)
            finishing = pool.submit(finish, site, claim, barrier, early_s)
            answer = pool.submit(cancel, site, job, barrier, -early_s).result()
            if answer.status_code == 202:
                site.expect(job, Status.CANCELLED)
            else:
                assert answer.status_code == 409
            assert finishing.result() in site.ledger[job]
    ends = {status for right in site.ledger.values() for status in right}
    assert ends == {Status.CANCELLED, Status.SUCCEEDED}, "one side always won, so nothing raced"


def finish(site: Site, claim: store.Claim, barrier: Barrier, delay_s: float) -> Status | None:
    barrier.wait(30)
    time.sleep(max(0.0, delay_s))
    with db.begin(site.engine) as s:
        return store.finish(s, claim, Reason.FINISHED, result={}, run_seconds=0.0)


def cancel(site: Site, job: str, barrier: Barrier, delay_s: float = 0.0) -> httpx.Response:
    barrier.wait(30)
    time.sleep(max(0.0, delay_s))
    return site.api.post(f"/api/v1/jobs/{job}/cancel")


@pytest.mark.faults_only
@pytest.mark.fault("F36")
def test_ten_cancels_at_once_are_one_and_a_cancel_counts_also_while_the_worker_is_dead(site: Site) -> None:
    site.start_api()
    site.fleet.controller()
    worker = site.fleet.worker("one")
    running = site.submit("hang")
    until(lambda: site.has_noted(running, "hanging"))
    queued = site.submit("finish")
    worker.kill()
    for job in (queued, running):
        barrier = Barrier(10)
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(partial(cancel, site, job), [barrier] * 10))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == ([202] * 10 if job == running else [202] + [409] * 9)
        site.expect(job, Status.CANCELLED)
    began = time.monotonic()
    site.all_end()
    assert time.monotonic() - began < QUICK["lease_s"] + QUICK["tick_s"] + 5


@pytest.mark.faults_only
@pytest.mark.fault("F37")
def test_fifty_submissions_at_once_with_one_key_make_one_job_and_another_body_is_refused(site: Site) -> None:
    site.start_api()
    barrier = Barrier(50)

    def submit(_: int) -> httpx.Response:
        barrier.wait(30)
        return site.post("finish", **{"Idempotency-Key": "the-key"})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(submit, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == len(site.ledger) == 1
    assert site.post("other", **{"Idempotency-Key": "the-key"}).status_code in (409, 422)
    site.fleet.controller()
    site.fleet.worker("one")
    site.all_end()


@pytest.mark.faults_only
@pytest.mark.fault("F10")
def test_an_answer_that_is_lost_with_the_api_is_given_again_for_the_same_key(site: Site) -> None:
    """The process dies after its commit, before the client hears of it."""
    api = site.start_api(fault="api.before_answer:kill")
    key = {"Idempotency-Key": "the-key"}
    with pytest.raises(httpx.TransportError):
        site.post("finish", **key)
    assert api.wait(30) == -9
    site.start_api()
    answer = site.post("finish", **key)
    assert answer.status_code == 202 and answer.headers["Idempotency-Replayed"] == "true"
    site.fleet.controller()
    site.fleet.worker("one")
    site.all_end()
    each_ran_once(site)


@pytest.mark.faults_only
@pytest.mark.fault("F40")
@pytest.mark.parametrize("where", ["worker.after_claim", "worker.before_spawn", "worker.after_spawn"])
def test_a_job_whose_worker_dies_right_after_the_claim_is_given_to_another(site: Site, where: str) -> None:
    site.fleet.controller()
    deadly = site.fleet.worker("one", fault=f"{where}:kill")
    job = site.submit("finish")
    until(lambda: site.row(job).attempt == 2, 20)
    deadly.kill()  # each of its pool processes would do it again
    site.fleet.worker("two")
    site.all_end()
    assert site.row(job).attempt in (2, 3)


@pytest.mark.faults_only
@pytest.mark.fault("F42")
def test_a_group_that_floods_the_queue_keeps_no_other_waiting_for_more_than_two_jobs(site: Site) -> None:
    flood = [site.submit("bare", group="flood") for _ in range(200)]
    site.fleet.controller()
    for name in ("one", "two"):
        site.fleet.worker(name, app="tests.faults.bare_tasks")
    until(lambda: site.status(flood[0]) in TERMINAL)
    other = site.submit("bare", group="other")
    until(lambda: site.status(other) in TERMINAL)
    queued_at = site.row(other).queued_at
    site.all_end()
    between = [job for job in flood if queued_at < site.row(job).started_at < site.row(other).started_at]
    assert len(between) <= 4, "two on each of two workers"
