"""Random lives of jobs on the real store, which after every step is what the model of the protocol says it is."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_lives
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session

from dsd_core.spec import JobSpec
from jobs import db, store
from jobs.resources import demand_of, fits
from jobs.status import HELD, MOVES, TERMINAL, Reason, Request, Status
from jobs.store import Claim, Heard
from jobs.store.moves import NeedFailedError
from jobs.tables import Base, JobEventRow, JobRow, OutboxRow
from tests.jobs import protocol_model as model
from tests.jobs.builders import a_spec, an_offer
from tests.jobs.protocol_model import Job, Jobs, Lease, Message

T = TypeVar("T")
HOPELESS = (Status.FAILED, Status.CANCELLED)
LEASES_S = st.sampled_from([60.0, -1.0])  # alive, or lapsed as soon as it is given
REASONS = st.sampled_from([Reason.CRASHED, Reason.STORAGE, Reason.FINISHED, Reason.STOPPED_EARLY, Reason.DIVERGED])
WHICH_JOB = st.integers(0, 2)
RESOURCES = st.sampled_from([{}, {}, {"device": "cuda"}, {"labels": {"zone": "a"}}])
OFFERS = st.sampled_from(
    [an_offer(), an_offer(labels={"zone": "a"}), an_offer(device="cuda", devices=("0",), labels={"zone": "a"})]
)
PRIORITIES = st.sampled_from([-1, 0, 0, 100])
WISHES: dict[str, Callable[[Session, str], JobRow]] = {
    "resume": store.request_resume,
    "stop": store.request_stop,
    "pause": store.request_pause,
    "cancel": store.request_cancel,
}
FIRST_WISHES = [[], ["pause"], ["pause", "resume"], ["stop"], ["cancel"]]
PROTOCOL = model.Protocol()


@dataclass
class Known:
    """What is known of a job beside the protocol's part of it."""

    id: str
    spec: JobSpec
    priority: int
    retry_of: str | None = None
    lines: list[str] = field(default_factory=list)  # of events.jsonl; each counts as one byte
    history: list[str] = field(default_factory=list)  # all that were ever copied

    @property
    def offset(self) -> int:
        return len(self.lines)


class Lives(RuleBasedStateMachine):
    engine: Engine
    seen: Counter[str]  # what has come about, over all lives

    @initialize(max_attempts=st.sampled_from([2, 3, 1]), claimed=st.booleans(), wishes=st.sampled_from(FIRST_WISHES))
    def begin(self, max_attempts: int, claimed: bool, wishes: list[str]) -> None:
        """Many lives begin with a job of which something was asked while it waited or ran."""
        with db.begin(self.engine) as s:
            for table in reversed(Base.metadata.sorted_tables):
                s.execute(delete(table))
        self.jobs: Jobs = ()
        self.known: list[Known] = []
        self.claims: list[Claim] = []
        self.taken: dict[int, int] = {}  # by place of the job: its message, where a relay has taken it
        self.late: list[int] = []  # messages that a relay has taken and that are no more
        self.submit(max_attempts=max_attempts, priority=0, group="a", resources={}, needed=[])
        if claimed:
            self.claim(which=0, late_by=0, lease_s=60.0)
        for wish in wishes:
            self.ask(which=0, wish=wish, in_vain=False)

    # People

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(
        max_attempts=st.sampled_from([2, 3, 1]),
        priority=PRIORITIES,
        group=st.sampled_from(["a", "b"]),
        resources=RESOURCES,
        needed=st.lists(WHICH_JOB, max_size=2),
    )
    def submit(
        self, max_attempts: int, priority: int, group: str, resources: dict[str, Any], needed: list[int]
    ) -> None:
        needs = tuple(sorted({place for place in needed if place < len(self.jobs)}))
        ids = [self.known[place].id for place in needs]
        self.add(a_spec(priority=priority, group=group, resources=resources, needs=ids), max_attempts, needs)

    def add(self, spec: JobSpec, max_attempts: int, needs: tuple[int, ...], **lineage: str) -> None:
        hopeless = any(self.jobs[place].status in HOPELESS for place in needs)
        try:
            with db.begin(self.engine) as s:
                row, new = store.submit(s, spec, max_attempts=max_attempts, **lineage)
        except NeedFailedError:
            assert hopeless
            self.seen["submit: a need has failed"] += 1
            return
        assert new and not hopeless
        self.jobs = PROTOCOL.submitted(self.jobs, max_attempts, needs)
        self.known.append(Known(row.id, spec, spec.priority, lineage.get("retry_of")))

    @precondition(lambda self: len(self.jobs) < 3 and any(job.status in HOPELESS for job in self.jobs))
    @rule(which=WHICH_JOB)
    def retry(self, which: int) -> None:
        place = choose(which, [place for place, job in enumerate(self.jobs) if job.status in HOPELESS])
        old, known = self.jobs[place], self.known[place]
        with db.begin(self.engine) as s:
            _, spec = store.retryable(s, known.id)
        self.seen["retry"] += 1
        self.add(spec, old.max_attempts, old.needs, retry_of=known.id)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH_JOB, wish=st.sampled_from(sorted(WISHES)), in_vain=st.sampled_from([False, False, True]))
    def ask(self, which: int, wish: str, in_vain: bool) -> None:
        running_first = sorted(range(len(self.jobs)), key=lambda place: self.jobs[place].status != Status.RUNNING)
        asked = [place for place in running_first if (self.granted(place, wish) is None) is in_vain]
        if not asked:
            return
        place = choose(which, asked)
        status = self.jobs[place].status
        try:
            with db.begin(self.engine) as s:
                WISHES[wish](s, self.known[place].id)
        except store.NotPossible as refusal:
            assert in_vain and refusal.status == status
            self.seen[f"{wish}: refused"] += 1
        else:
            self.seen[f"{wish}: {'again' if in_vain else status}"] += 1
        self.put(place, self.granted(place, wish))

    def granted(self, place: int, wish: str) -> Job | None:
        after: Job | None = getattr(PROTOCOL, wish)(self.jobs[place])
        return after

    @precondition(lambda self: any(job.line for job in self.jobs))
    @rule(which=WHICH_JOB, priority=PRIORITIES)
    def set_priority(self, which: int, priority: int) -> None:
        known = self.known[choose(which, [place for place, job in enumerate(self.jobs) if job.line])]
        with db.begin(self.engine) as s:
            store.set_priority(s, known.id, priority)
        known.priority = priority

    # Workers

    @rule(which=WHICH_JOB, late_by=st.sampled_from([0, 0, 0, 1, -1]), lease_s=LEASES_S)
    def claim(self, which: int, late_by: int, lease_s: float) -> None:
        place = choose(which, range(len(self.jobs)))
        claimed = None if late_by else PROTOCOL.claim(self.jobs[place])
        with db.begin(self.engine) as s:
            attempt = self.jobs[place].attempt - late_by
            claim = store.claim(s, self.known[place].id, attempt, "worker", lease_s)
        self.check_claim(place, claim, claimed, lease_s)

    @precondition(lambda self: any(job.line for job in self.jobs))
    @rule(offer=OFFERS, lease_s=LEASES_S)
    def claim_next(self, offer: Any, lease_s: float) -> None:
        able = [
            place
            for place, job in enumerate(self.jobs)
            if PROTOCOL.claimable(job) and fits(demand_of(self.known[place].spec.model_dump(mode="json")), offer)
        ]
        with db.begin(self.engine) as s:
            claim = store.claim_next(s, offer, lease_s)
        if not able:
            assert claim is None
            return
        place = min(able, key=self.urgency)
        self.seen["claim_next: one of several"] += len(able) > 1
        self.check_claim(place, claim, PROTOCOL.claim(self.jobs[place]), lease_s)

    def urgency(self, place: int) -> tuple[int, int, str]:
        known = self.known[place]
        running = sum(
            job.status in HELD and other.spec.group == known.spec.group
            for job, other in zip(self.jobs, self.known, strict=True)
        )
        return -known.priority, running, known.id

    def check_claim(self, place: int, claim: Claim | None, claimed: Job | None, lease_s: float) -> None:
        known = self.known[place]
        if claimed is None:
            assert claim is None
            return
        assert claim is not None
        assert (claim.job_id, claim.attempt, claim.fence) == (known.id, claimed.attempt, claimed.fence)
        assert (claim.events_offset, claim.retry_of) == (known.offset, known.retry_of)
        self.claims.append(claim)
        self.put(place, leased(claimed, lease_s))

    @precondition(lambda self: self.held())
    @rule(which=WHICH_JOB, lease_s=LEASES_S)
    def beat(self, which: int, lease_s: float) -> None:
        place, claim = choose(which, self.held())
        job = self.jobs[place]
        with db.begin(self.engine) as s:
            assert store.beat(s, claim, lease_s) == Heard(job.status, job.request)
        self.put(place, leased(job, lease_s))

    @precondition(lambda self: self.held())
    @rule(which=WHICH_JOB, new=st.integers(1, 2), step=st.integers(0, 1), again=st.booleans())
    def append_events(self, which: int, new: int, step: int, again: bool) -> None:
        place, claim = choose(which, self.held())
        known = self.known[place]
        written = [f"{len(known.history)}+{i}" for i in range(new)]
        lines = known.lines + written
        first = 0 if again else known.offset
        batch = [
            ({"type": "progress", "message": line, "total_step": step}, offset)
            for offset, line in enumerate(lines[first:], start=first + 1)
        ]
        with db.begin(self.engine) as s:
            assert store.append_events(s, claim, batch)
        self.seen["events sent twice"] += again and known.offset > 0
        known.lines, known.history = lines, known.history + written
        self.put(place, PROTOCOL.tell(self.jobs[place], claim.fence, step))

    @precondition(lambda self: any(self.known[place].offset for place, _ in self.held()))
    @rule(which=WHICH_JOB, kept=st.integers(0, 2))
    def restart_events(self, which: int, kept: int) -> None:
        """The folder of this host has only the first lines of the file."""
        place, claim = choose(which, self.held())
        known = self.known[place]
        with db.begin(self.engine) as s:
            assert store.restart_events(s, claim, kept)
        self.seen["events restarted"] += kept < known.offset
        known.lines = known.lines[:kept]

    @precondition(lambda self: self.held())
    @rule(which=WHICH_JOB, reason=REASONS, backs_off=st.booleans())
    def finish(self, which: int, reason: Reason, backs_off: bool) -> None:
        place, claim = choose(which, self.held())
        after = PROTOCOL.finish(self.jobs[place], claim.fence, reason, backs_off=backs_off)
        base_s = 100.0 if backs_off else 0.0
        with db.begin(self.engine) as s:
            ended = store.finish(s, claim, reason, result={}, run_seconds=1.0, backoff_base_s=base_s)
        assert after is not None and ended == after.status
        self.seen[f"finish: {ended}"] += 1
        self.put(place, after)

    @precondition(lambda self: self.held())
    @rule(which=WHICH_JOB, reason=st.sampled_from([Reason.RELEASED, Reason.PAUSED]))
    def release(self, which: int, reason: Reason) -> None:
        place, claim = choose(which, self.held())
        after = PROTOCOL.release(self.jobs[place], claim.fence, reason)
        with db.begin(self.engine) as s:
            assert store.release(s, claim, 1.0, reason)
        assert after is not None
        self.seen[f"release: {'paused' if after.paused else after.status}"] += 1
        self.put(place, after)

    @precondition(lambda self: len(self.claims) > len(self.held()))
    @rule(which=WHICH_JOB)
    def come_late(self, which: int) -> None:
        """A claim that was lost changes nothing, whatever its worker does."""
        held = [claim for _, claim in self.held()]
        claim = choose(which, [claim for claim in reversed(self.claims) if claim not in held])
        event = {"type": "progress", "message": "late", "total_step": 9}
        with db.begin(self.engine) as s:
            assert store.beat(s, claim, 60) is None
            assert not store.append_events(s, claim, [(event, 99)])
            assert not store.restart_events(s, claim, 0)
            assert not store.release(s, claim, 1.0)
            assert store.finish(s, claim, Reason.FINISHED, result={}, run_seconds=1.0) is None
        self.claims.remove(claim)
        self.seen["late"] += 1

    # The controller, and time

    @precondition(lambda self: self.held())
    @rule(all_lapse=st.booleans())
    def expire(self, all_lapse: bool) -> None:
        with db.begin(self.engine) as s:
            if all_lapse:
                past = db.db_now(s) - timedelta(seconds=1)
                s.execute(update(JobRow).where(JobRow.status.in_(HELD)).values(lease_expires_at=past))
                self.jobs = tuple(job if job.lease is Lease.NONE else leased(job, -1) for job in self.jobs)
            expired = {place: job for place, job in enumerate(map(PROTOCOL.expire, self.jobs)) if job}
            assert store.expire_leases(s) == [self.known[place].id for place in expired]
        for place, job in expired.items():
            self.seen[f"expire: {'paused' if job.paused else job.status}"] += 1
            self.put(place, job)

    @precondition(lambda self: any(map(PROTOCOL.take_message, self.jobs)) or self.late)
    @rule(lives=st.booleans())
    def relay(self, lives: bool) -> None:
        """Take what is due and, unless the relay dies before that, mark it sent, with all that was taken before."""
        due = {place: job for place, job in enumerate(map(PROTOCOL.take_message, self.jobs)) if job}
        with db.begin(self.engine) as s:
            rows = {row.job_id: row.id for row in store.due_outbox(s, 9)}
        assert set(rows) == {self.known[place].id for place in due}
        for place, job in due.items():
            self.taken[place] = rows[self.known[place].id]
            self.put(place, job)
        if lives:
            self.mark_sent()

    def mark_sent(self) -> None:
        with db.begin(self.engine) as s:
            store.mark_sent(s, [*self.taken.values(), *self.late])
        self.seen["a late mark"] += any(job.line for job in self.jobs) and len(self.late)
        for place in self.taken:
            self.put(place, PROTOCOL.mark_sent(self.jobs[place]))
        self.late = []

    @precondition(lambda self: any(job.message is Message.SENT for job in self.jobs))
    @rule()
    def redispatch(self) -> None:
        again = {place: job for place, job in enumerate(map(PROTOCOL.redispatch, self.jobs)) if job}
        with db.begin(self.engine) as s:
            assert store.redispatch(s, -1, fresh_s=30) == len(again)
        self.seen["redispatched"] += len(again)
        for place, job in again.items():
            self.put(place, job)

    @precondition(lambda self: any(job.backing_off or job.message is Message.TAKEN for job in self.jobs))
    @rule()
    def time_passes(self) -> None:
        """Back-offs end, and other relays may have the messages that were taken."""
        with db.begin(self.engine) as s:
            past = db.db_now(s) - timedelta(seconds=1)
            s.execute(update(JobRow).where(JobRow.not_before.is_not(None)).values(not_before=past))
            s.execute(update(OutboxRow).where(OutboxRow.sent_at.is_(None)).values(next_try_at=past))
        for place, job in enumerate(self.jobs):
            message = Message.DUE if job.message is Message.TAKEN else job.message
            self.put(place, job._replace(backing_off=False, message=message))

    # After every step

    @invariant(check_during_init=False)
    def the_store_is_what_the_model_says(self) -> None:
        with db.reading(self.engine) as s:
            now = db.db_now(s)
            rows = {row.id: row for row in s.scalars(select(JobRow))}
            events = list(s.scalars(select(JobEventRow).order_by(JobEventRow.job_id, JobEventRow.seq)))
            messages = {row.job_id: row for row in s.scalars(select(OutboxRow))}
        assert set(rows) == {known.id for known in self.known}
        for job, known in zip(self.jobs, self.known, strict=True):
            row = rows[known.id]
            assert as_job(row, messages.get(row.id), job.needs, now) == job
            assert row.id not in messages or messages[row.id].attempt == row.attempt
            check_history(row, known, [event for event in events if event.job_id == row.id])

    def put(self, place: int, job: Job | None) -> None:
        if job is not None:
            self.jobs = PROTOCOL.put(self.jobs, place, job)
        self.late += [row for place, row in self.taken.items() if self.jobs[place].message is Message.NONE]
        self.taken = {place: row for place, row in self.taken.items() if row not in self.late}

    def held(self) -> list[tuple[int, Claim]]:
        """The claims that hold, each with the place of its job, the newest first."""
        places = {known.id: place for place, known in enumerate(self.known)}
        claims = [(places[claim.job_id], claim) for claim in reversed(self.claims)]
        return [(place, claim) for place, claim in claims if PROTOCOL.holds(self.jobs[place], claim.fence)]


def choose(which: int, among: Sequence[T]) -> T:
    return among[which % len(among)]


def leased(job: Job, lease_s: float) -> Job:
    return job._replace(lease=Lease.ALIVE if lease_s > 0 else Lease.LAPSED)


def as_job(row: JobRow, message: OutboxRow | None, needs: tuple[int, ...], now: datetime) -> Job:
    """The protocol's part of a row."""
    backing_off = row.not_before is not None and row.not_before > now
    return Job(
        max_attempts=row.max_attempts,
        needs=needs,
        needs_left=row.needs_left,
        status=Status(row.status),
        attempt=row.attempt,
        releases=row.releases,
        fence=row.fence,
        lease=_lease(row.lease_expires_at, now),
        request=row.request and Request(row.request),
        paused=row.paused_at is not None,
        backing_off=backing_off,
        started=row.started_at is not None,
        told=(row.progress or {}).get("total_step", 0),
        crash_step=row.crash_step,
        result_fence=row.result_fence,
        line=row.line is not None,
        message=_message(message, backing_off, now),
    )


def _lease(until: datetime | None, now: datetime) -> Lease:
    if until is None:
        return Lease.NONE
    return Lease.ALIVE if until >= now else Lease.LAPSED


def _message(row: OutboxRow | None, backing_off: bool, now: datetime) -> Message:
    if row is None:
        return Message.NONE
    if row.sent_at is not None:
        return Message.SENT
    return Message.DUE if backing_off or row.next_try_at <= now else Message.TAKEN


def check_history(row: JobRow, known: Known, history: list[JobEventRow]) -> None:
    assert [event.seq for event in history] == list(range(1, row.last_seq + 1))
    moves = [(event.data["from"], event.data["to"]) for event in history if event.type == "status"]
    assert moves[0] == (None, Status.QUEUED) and moves[-1][1] == row.status
    assert all((Status(before), Status(to)) in MOVES for before, to in moves[1:])
    assert [to for _, to in moves[:-1]] == [before for before, _ in moves[1:]]
    assert sum(to in TERMINAL for _, to in moves) <= 1
    assert [event.data["message"] for event in history if event.type == "progress"] == known.history
    assert (row.priority, row.events_offset) == (known.priority, known.offset)


WAYS = [
    *(f"finish: {status}" for status in (Status.SUCCEEDED, Status.QUEUED, Status.FAILED, Status.CANCELLED)),
    *(f"release: {after}" for after in ("queued", "paused", "cancelled")),
    *(f"expire: {after}" for after in ("queued", "paused", "failed", "cancelled")),
    *("cancel: queued", "cancel: running", "cancel: refused"),
    *("pause: queued", "pause: running", "pause: refused"),
    *("resume: queued", "resume: running", "resume: refused"),
    *("stop: queued", "stop: running", "stop: refused"),
    *("submit: a need has failed", "retry", "claim_next: one of several"),
    *("events sent twice", "events restarted", "late", "a late mark", "redispatched"),
]


@pytest.fixture
def sqlite_in_memory() -> Iterator[Engine]:
    """A store that waits for no disk, where the system has files in memory."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dsd-", dir=memory if memory.is_dir() else None) as folder:
        yield from migrated(f"sqlite:///{folder}/jobs.db")


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[Engine]:
    yield from migrated(postgres_url)


def migrated(url: str) -> Iterator[Engine]:
    db.migrate(url)
    engine = db.make_engine(url)
    yield engine
    engine.dispose()


def live(engine: Engine, lives: int) -> Counter[str]:
    """Lead so many lives, the same each time; what has come about in them, and how often."""
    Lives.engine, Lives.seen = engine, Counter()
    run_lives(
        Lives,
        settings=settings(
            max_examples=lives,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # to make a life that failed shorter takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Lives.seen


@pytest.mark.parametrize("on", ["sqlite_in_memory", "postgres_engine"])
def test_in_every_random_life_the_store_is_what_the_model_says(request: pytest.FixtureRequest, on: str) -> None:
    live(request.getfixturevalue(on), lives=20)


@pytest.mark.slow
def test_in_many_random_lives_everything_comes_about(sqlite_in_memory: Engine) -> None:
    seen = live(sqlite_in_memory, lives=200)
    assert [way for way in WAYS if not seen[way]] == []
