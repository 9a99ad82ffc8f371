"""Random lives of jobs on the real store, compared with what the protocol promises after every step."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from jobs import db, store
from jobs.status import MOVES, OUTCOMES, TERMINAL, Reason, Status
from jobs.store import Claim
from jobs.tables import JobEventRow, JobRow, OutboxRow
from tests.jobs.builders import a_spec

LEASES_S = st.sampled_from([60.0, -1.0])  # alive, or lapsed as soon as it is given
REASONS = st.sampled_from([Reason.CRASHED, Reason.CRASHED, Reason.STORAGE, Reason.FINISHED, Reason.DIVERGED])
WHICH_JOB = st.sampled_from([0, 1, 2])
WHICH_CLAIM = st.sampled_from([0, 0, 0, 1, 2])  # the newest, or one before it


@dataclass
class Promise:
    """What is known of a job from the answers alone."""

    holder: Claim | None = None
    lapsed: bool = False
    cancel_accepted: bool = False
    fence: int = 0
    notes: int = 0


class Lives(RuleBasedStateMachine):
    template: Path
    seen: Counter[str]  # over all lives

    @initialize()
    def open(self) -> None:
        in_memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="dsd-", dir=in_memory if in_memory.is_dir() else None))
        shutil.copy(self.template, self.folder / "jobs.db")
        self.engine = db.make_engine(f"sqlite:///{self.folder / 'jobs.db'}")
        self.promises: dict[str, Promise] = {}
        self.claims: list[Claim] = []
        self.submit(max_attempts=2)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
            shutil.rmtree(self.folder)

    @precondition(lambda self: len(self.promises) < 3)
    @rule(max_attempts=st.integers(1, 4))
    def submit(self, max_attempts: int) -> None:
        with db.begin(self.engine) as s:
            row, created = store.submit(s, a_spec(), max_attempts=max_attempts)
        assert created and row.id not in self.promises
        self.promises[row.id] = Promise()

    @precondition(lambda self: len(self.claims) > 2)  # some lives shall be long
    @rule(which=WHICH_JOB)
    def cancel(self, which: int) -> None:
        job_id = self.newest_job(which)
        before = self.status(job_id)
        try:
            with db.begin(self.engine) as s:
                after = store.request_cancel(s, job_id).status
        except store.NotCancellable as error:
            assert error.status == before and before in TERMINAL
        else:
            assert after == (Status.CANCELLED if before is Status.QUEUED else Status.CANCELLING)
            self.promises[job_id].cancel_accepted = True

    @rule(which=WHICH_JOB, late_by=st.sampled_from([0, 0, 0, 1, -1]), lease_s=LEASES_S)
    def claim(self, which: int, late_by: int, lease_s: float) -> None:
        job_id = self.newest_job(which)
        with db.begin(self.engine) as s:
            row = store.get(s, job_id)
            assert row is not None
            claimable = row.status == Status.QUEUED and late_by == 0
            claim = store.claim(s, job_id, row.attempt - late_by, "worker", lease_s)
        assert (claim is not None) is claimable
        if claim is not None:
            promise = self.promises[job_id]
            assert promise.holder is None
            promise.holder, promise.lapsed = claim, lease_s < 0
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH_CLAIM, lease_s=LEASES_S, lines=st.integers(0, 3), again=st.booleans())
    def beat_and_append(self, which: int, lease_s: float, lines: int, again: bool) -> None:
        claim, promise, holds = self.newest_claim(which)
        status = self.status(claim.job_id)
        numbers = range(0 if again else promise.notes, promise.notes + lines)
        with db.begin(self.engine) as s:
            heard = store.beat(s, claim, lease_s)
            assert (heard and heard.status) == (status if holds else None)
            events = [({"type": "note", "message": str(i)}, i + 1) for i in numbers]
            assert store.append_events(s, claim, events) is holds
        if holds:
            self.seen["events sent twice"] += again and promise.notes > 0
            promise.notes += lines
            promise.lapsed = lease_s < 0

    @precondition(lambda self: self.claims)
    @rule(which=WHICH_CLAIM, reason=REASONS)
    def finish(self, which: int, reason: Reason) -> None:
        claim, promise, holds = self.newest_claim(which)
        with db.begin(self.engine) as s:
            ended = store.finish(s, claim, reason, result={}, run_seconds=1.0)
        assert (ended is not None) is holds
        assert ended in (Status.QUEUED, Status.CANCELLED, OUTCOMES[reason].status, None)
        self.seen[f"finish: {ended}"] += 1
        if holds:
            promise.holder = None

    @precondition(lambda self: self.claims)
    @rule(which=WHICH_CLAIM)
    def release(self, which: int) -> None:
        claim, promise, holds = self.newest_claim(which)
        with db.begin(self.engine) as s:
            assert store.release(s, claim, 1.0) is holds
        self.seen[f"release: {holds}"] += 1
        if holds:
            promise.holder = None

    @precondition(lambda self: any(p.holder for p in self.promises.values()))
    @rule()
    def control(self) -> None:
        with db.begin(self.engine) as s:
            taken = store.expire_leases(s)
            store.redispatch(s, -1, fresh_s=30)
            store.mark_sent(s, [row.id for row in store.due_outbox(s, 9)])
        assert taken == sorted(job_id for job_id, p in self.promises.items() if p.holder and p.lapsed)
        for job_id in taken:
            self.promises[job_id].holder = None
            self.seen[f"expire: {self.status(job_id)}"] += 1

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "engine"):
            return
        with db.reading(self.engine) as s:
            rows = list(s.scalars(select(JobRow)))
            events = list(s.scalars(select(JobEventRow).order_by(JobEventRow.seq)))
            messages = list(s.scalars(select(OutboxRow)))
        for row in rows:
            check_history(row, [e for e in events if e.job_id == row.id])
            waiting = [row.attempt] if row.status == Status.QUEUED else []
            assert [m.attempt for m in messages if m.job_id == row.id] == waiting
            notes = [e.data["message"] for e in events if e.job_id == row.id and e.type == "note"]
            assert notes == [str(i) for i in range(self.promises[row.id].notes)]
            check_promise(row, self.promises[row.id])

    def newest_job(self, which: int) -> str:
        return sorted(self.promises)[-1 - which % len(self.promises)]

    def newest_claim(self, which: int) -> tuple[Claim, Promise, bool]:
        """A claim, what is known of its job, and whether it still holds."""
        claim = self.claims[-1 - which % len(self.claims)]
        promise = self.promises[claim.job_id]
        return claim, promise, promise.holder == claim

    def status(self, job_id: str) -> Status:
        with db.reading(self.engine) as s:
            row = store.get(s, job_id)
            assert row is not None
            return Status(row.status)


def check_history(row: JobRow, history: list[JobEventRow]) -> None:
    assert [e.seq for e in history] == list(range(1, row.last_seq + 1))
    moves = [(e.data["from"], e.data["to"]) for e in history if e.type == "status"]
    assert moves[0] == (None, Status.QUEUED) and moves[-1][1] == row.status
    assert all((Status(before), Status(to)) in MOVES for before, to in moves[1:])
    assert [to for _, to in moves[:-1]] == [before for before, _ in moves[1:]]
    assert sum(to in TERMINAL for _, to in moves) <= 1


def check_promise(row: JobRow, promise: Promise) -> None:
    assert row.fence >= promise.fence
    promise.fence = row.fence
    assert 1 <= row.attempt <= row.max_attempts
    assert not (promise.cancel_accepted and row.status == Status.SUCCEEDED)
    assert (promise.holder is not None) is (row.status in (Status.RUNNING, Status.CANCELLING))
    assert promise.holder is None or promise.holder.fence == row.fence


@pytest.mark.slow
def test_every_random_life_of_a_job_keeps_the_promises(tmp_path: Path) -> None:
    Lives.template, Lives.seen = tmp_path / "jobs.db", Counter()
    db.migrate(f"sqlite:///{Lives.template}")
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,  # the same lives each time, so that the list below is either reached or not
            suppress_health_check=list(HealthCheck),
        ),
    )
    ways = ["finish: succeeded", "finish: queued", "finish: failed", "finish: cancelled", "finish: None"]
    ways += ["release: True", "release: False", "expire: queued", "expire: failed", "expire: cancelled"]
    assert [way for way in [*ways, "events sent twice"] if not Lives.seen[way]] == [], "this was never tried"
