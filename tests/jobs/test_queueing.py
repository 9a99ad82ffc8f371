"""Who is next: priority, then groups in turn, then who came first; and only what the worker can run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text, update
from sqlalchemy.event import listen

from jobs import db, store
from jobs.status import Drain, Reason, Status
from jobs.store import Claim
from jobs.tables import JobRow
from tests.jobs.builders import a_queued_job, a_running_job, an_offer, cancel, claim_next, job, lapse, outbox


def claimed_ids(engine: Engine, **offer: Any) -> list[str]:
    """The jobs one worker after the other claims, until there is none it can run."""
    ids = []
    while claim := claim_next(engine, **offer):
        ids.append(claim.job_id)
    return ids


def places(engine: Engine, *ids: str) -> list[int | None]:
    with db.reading(engine) as s:
        found = store.positions(s, [row for job_id in ids if (row := store.get(s, job_id))])
    return [found.get(job_id) for job_id in ids]


def end(engine: Engine, claim: Claim, reason: Reason, **values: Any) -> Status | None:
    with db.begin(engine) as s:
        return store.finish(s, claim, reason, run_seconds=10.0, **values)


def test_the_more_urgent_job_is_claimed_first_and_among_equals_the_older(engine: Engine) -> None:
    low, first, second, high = (a_queued_job(engine, priority=p) for p in (-5, 0, 0, 7))
    assert places(engine, low, first, second, high) == [4, 2, 3, 1]
    assert claimed_ids(engine) == [high, first, second, low]
    assert claim_next(engine) is None


def test_another_priority_moves_a_waiting_job(engine: Engine) -> None:
    first, second = a_queued_job(engine), a_queued_job(engine)
    with db.begin(engine) as s:
        store.set_priority(s, second, 100)
    assert places(engine, first, second) == [2, 1]
    assert claimed_ids(engine) == [second, first]


@pytest.mark.fault("F42")
def test_a_group_that_queues_a_thousand_jobs_keeps_no_other_waiting(sqlite_engine: Engine) -> None:
    for _ in range(40):
        a_queued_job(sqlite_engine, group="flood")
    first, second = claim_next(sqlite_engine), claim_next(sqlite_engine)
    other = a_queued_job(sqlite_engine, group="other")
    assert first is not None and second is not None
    end(sqlite_engine, first, Reason.FINISHED)
    third = claim_next(sqlite_engine)
    assert third is not None and third.job_id == other


def test_a_worker_gets_only_what_it_can_run(engine: Engine) -> None:
    cuda = a_queued_job(engine, resources={"device": "cuda", "processes": 2})
    large = a_queued_job(engine, resources={"memory_gib": 64})
    zone = a_queued_job(engine, resources={"labels": {"zone": "a"}})
    small = a_queued_job(engine)
    assert claimed_ids(engine) == [small]
    assert claimed_ids(engine, labels={"zone": "a"}) == [zone]
    assert claimed_ids(engine, device="cuda", devices=("0",)) == []
    assert claimed_ids(engine, device="cuda", devices=("0", "1"), memory_gib=80.0) == [cuda, large]


def test_a_job_that_was_taken_from_its_worker_keeps_its_place(engine: Engine) -> None:
    again = a_running_job(engine).job_id
    later = a_queued_job(engine)
    lapse(engine)
    assert places(engine, again, later) == [1, 2]


def test_jobs_that_run_or_have_ended_have_no_place(engine: Engine) -> None:
    first, second, third = (a_queued_job(engine) for _ in range(3))
    cancel(engine, second)
    assert claim_next(engine) is not None
    assert places(engine, first, second, third) == [None, None, 1]


def test_a_further_try_waits_for_its_back_off(engine: Engine) -> None:
    claim = a_running_job(engine)
    assert end(engine, claim, Reason.STALLED, backoff_base_s=100.0) is Status.QUEUED
    assert claim_next(engine) is None
    assert store_claim(engine, claim.job_id, attempt=2) is None
    (message,) = outbox(engine)
    row = job(engine, claim.job_id)
    assert row.not_before == message.next_try_at
    assert row.not_before is not None and 90 < (row.not_before - row.updated_at).total_seconds() <= 100
    with db.begin(engine) as s:
        s.execute(update(JobRow).values(not_before=db.db_now(s) - timedelta(seconds=1)))
    assert claimed_ids(engine) == [claim.job_id]


def store_claim(engine: Engine, job_id: str, attempt: int) -> Claim | None:
    with db.begin(engine) as s:
        return store.claim(s, job_id, attempt, "worker", 30)


@pytest.mark.fault("F24")
def test_a_job_that_the_version_before_has_queued_or_claimed_is_treated_rightly(engine: Engine) -> None:
    queued, running = a_queued_job(engine), a_queued_job(engine)
    with db.begin(engine) as s:
        s.execute(update(JobRow).where(JobRow.id == queued).values(line=None))
        s.execute(update(JobRow).where(JobRow.id == running).values(status="running"))
    assert claim_next(engine) is None
    with db.begin(engine) as s:
        assert [store.restand(s), store.restand(s)] == [1, 0]
    assert claimed_ids(engine) == [queued]


def test_the_start_is_estimated_from_what_runs_and_waits_before_and_the_workers_there_are(engine: Engine) -> None:
    done, running = a_running_job(engine), a_queued_job(engine)
    first, second = a_queued_job(engine), a_queued_job(engine)
    assert estimated_wait_s(engine, second) is None  # nobody knows how long such jobs take
    end(engine, done, Reason.FINISHED)  # 10 s
    assert estimated_wait_s(engine, second) is None  # nobody is there to run it
    with db.begin(engine) as s:
        store.register_worker(s, an_offer())
        store.register_worker(s, an_offer("emptied"))
        store.set_drain(s, "emptied", Drain.NOW)
    assert claim_next(engine) is not None
    with db.begin(engine) as s:
        store.worker_beat(s, "worker-1", running)
    assert estimated_wait_s(engine, first) == pytest.approx(10, abs=1)
    assert estimated_wait_s(engine, second) == pytest.approx(20, abs=1)


def estimated_wait_s(engine: Engine, job_id: str) -> float | None:
    with db.reading(engine) as s:
        row, now = store.get(s, job_id), db.db_now(s)
        assert row is not None
        found = store.estimate(s, row, fresh_s=30)
    if found.start is None or found.finish is None:
        return None
    assert (found.finish - found.start).total_seconds() == pytest.approx(10, abs=1)
    return (found.start - now).total_seconds()


def test_the_end_of_a_running_job_is_estimated_from_its_progress(engine: Engine) -> None:
    claim = a_running_job(engine)
    progress = {"type": "progress", "step": 10, "steps": 20, "total_step": 30, "total_steps": 40, "eta_s": 5.0}
    with db.begin(engine) as s:
        assert store.append_events(s, claim, [(progress, 1)])
    with db.reading(engine) as s:
        row, now = store.get(s, claim.job_id), db.db_now(s)
        assert row is not None
        found = store.estimate(s, row, fresh_s=30)
    assert found.start == row.started_at
    assert found.finish is not None and (found.finish - now).total_seconds() == pytest.approx(5, abs=0.5)


def test_looking_for_work_does_not_read_the_table_through(postgres_url: str) -> None:
    """Whatever PostgreSQL's planner makes of a table of which a third waits."""
    db.migrate(postgres_url)
    engine = db.make_engine(postgres_url)
    ended, waiting = a_queued_job(engine), [a_queued_job(engine, group=f"group-{number}") for number in range(8)]
    cancel(engine, ended)
    columns = JobRow.__table__.columns.keys()
    copy = ", ".join("substr(id, 1, 12) || lpad(CAST(n AS text), 8, '0')" if name == "id" else name for name in columns)
    with engine.begin() as connection:
        for job_id, count in [(ended, 10_000), *((job_id, 600) for job_id in waiting)]:
            source = f"FROM jobs, generate_series(1, {count}) n WHERE id = '{job_id}'"
            connection.execute(text(f"INSERT INTO jobs ({', '.join(columns)}) SELECT {copy} {source}"))
        connection.execute(text("ANALYZE jobs"))
    plans: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith(("SELECT", "WITH")) and "jobs" in statement:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in cursor.fetchall()))

    listen(engine, "before_cursor_execute", explain)
    with db.reading(engine) as s:
        assert store.has_work(s, an_offer())
    assert plans
    assert [plan for plan in plans if "Seq Scan on jobs" in plan] == []
    engine.dispose()
