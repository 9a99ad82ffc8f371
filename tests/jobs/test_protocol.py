"""Random lives of jobs on the real store, compared with what the protocol promises after every step."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
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
REASONS = st.sampled_from(sorted(set(OUTCOMES) - {Reason.CANCELLED_BY_USER}))


@dataclass
class Promise:
    """What is known of a job from the answers alone."""

    holder: Claim | None = None
    cancel_accepted: bool = False
    fence: int = 0
    notes: int = 0
    offset: int = 0


class Lives(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")
    template: Path

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dsd-"))
        shutil.copy(self.template, self.folder / "jobs.db")
        self.engine = db.make_engine(f"sqlite:///{self.folder / 'jobs.db'}")
        self.promises: dict[str, Promise] = {}

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
            shutil.rmtree(self.folder)

    @rule(target=jobs, max_attempts=st.integers(1, 3))
    def submit(self, max_attempts: int) -> str:
        with db.begin(self.engine) as s:
            row, created = store.submit(s, a_spec(), max_attempts=max_attempts)
        assert created and row.id not in self.promises
        self.promises[row.id] = Promise()
        return row.id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        before = self.status(job_id)
        try:
            with db.begin(self.engine) as s:
                after = store.request_cancel(s, job_id).status
        except store.NotCancellable as error:
            assert error.status == before and before in TERMINAL
        else:
            assert after == (Status.CANCELLED if before is Status.QUEUED else Status.CANCELLING)
            self.promises[job_id].cancel_accepted = True

    @rule(target=claims, job_id=jobs, attempt=st.integers(1, 3), lease_s=LEASES_S)
    def claim(self, job_id: str, attempt: int, lease_s: float) -> object:
        with db.begin(self.engine) as s:
            row = store.get(s, job_id)
            assert row is not None
            claimable = row.status == Status.QUEUED and row.attempt == attempt
            claim = store.claim(s, job_id, attempt, "worker", lease_s)
        assert (claim is not None) is claimable
        if claim is None:
            return multiple()
        assert self.promises[job_id].holder is None
        self.promises[job_id].holder = claim
        return claim

    @rule(claim=claims, lease_s=LEASES_S)
    def beat(self, claim: Claim, lease_s: float) -> None:
        status = self.status(claim.job_id)
        with db.begin(self.engine) as s:
            assert store.beat(s, claim, lease_s) == (status if self.holds(claim) else None)

    @rule(claim=claims, lines=st.integers(0, 3), repeated=st.booleans())
    def append_events(self, claim: Claim, lines: int, repeated: bool) -> None:
        promise = self.promises[claim.job_id]
        first = 0 if repeated else promise.notes
        events = [({"type": "note", "message": str(i)}, i + 1) for i in range(first, promise.notes + lines)]
        with db.begin(self.engine) as s:
            assert store.append_events(s, claim, events) is self.holds(claim)
        if self.holds(claim):
            promise.notes += lines

    @rule(claim=claims, reason=REASONS)
    def finish(self, claim: Claim, reason: Reason) -> None:
        with db.begin(self.engine) as s:
            ended = store.finish(s, claim, reason, result={}, run_seconds=1.0)
        assert (ended is not None) is self.holds(claim)
        if ended is not None:
            self.promises[claim.job_id].holder = None

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        with db.begin(self.engine) as s:
            assert store.release(s, claim, 1.0) is self.holds(claim)
        if self.holds(claim):
            self.promises[claim.job_id].holder = None

    @rule()
    def expire(self) -> None:
        with db.begin(self.engine) as s:
            taken = store.expire_leases(s)
        for job_id in taken:
            assert self.promises[job_id].holder is not None
            self.promises[job_id].holder = None

    @rule()
    def relay(self) -> None:
        with db.begin(self.engine) as s:
            store.mark_sent(s, [row.id for row in store.due_outbox(s, 2)])

    @rule()
    def redispatch(self) -> None:
        with db.begin(self.engine) as s:
            store.redispatch(s, older_than_s=-1)

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "engine"):
            return
        with db.reading(self.engine) as s:
            for row in s.scalars(select(JobRow)):
                promise = self.promises[row.id]
                history = store.events_after(s, row.id, 0, 10_000)
                check_history(row, history)
                assert [e.data["message"] for e in history if e.type == "note"] == [
                    str(i) for i in range(promise.notes)
                ]
                assert row.fence >= promise.fence
                promise.fence = row.fence
                assert 1 <= row.attempt <= row.max_attempts
                assert not (promise.cancel_accepted and row.status == Status.SUCCEEDED)
                assert (promise.holder is not None) is (row.status in (Status.RUNNING, Status.CANCELLING))
                assert promise.holder is None or promise.holder.fence == row.fence
                messages = list(s.scalars(select(OutboxRow).where(OutboxRow.job_id == row.id)))
                assert [m.attempt for m in messages] == ([row.attempt] if row.status == Status.QUEUED else [])

    def holds(self, claim: Claim) -> bool:
        return self.promises[claim.job_id].holder == claim

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


@pytest.mark.slow
def test_every_random_life_of_a_job_keeps_the_promises(tmp_path: Path) -> None:
    Lives.template = tmp_path / "jobs.db"
    db.migrate(f"sqlite:///{Lives.template}")
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
