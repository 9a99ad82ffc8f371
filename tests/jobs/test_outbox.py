from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, update

from jobs import db, store
from jobs.status import Drain
from jobs.tables import OutboxRow
from tests.jobs.builders import a_queued_job, an_offer, claimed, lapse, outbox


def due(engine: Engine, limit: int = 50) -> list[tuple[str, int]]:
    with db.begin(engine) as s:
        return [(row.job_id, row.attempt) for row in store.due_outbox(s, limit)]


def send_all(engine: Engine) -> None:
    with db.begin(engine) as s:
        store.mark_sent(s, [row.id for row in store.due_outbox(s, 50)])


def age(engine: Engine, seconds: float) -> None:
    with db.begin(engine) as s:
        now = db.db_now(s)
        s.execute(update(OutboxRow).values(sent_at=now - timedelta(seconds=seconds)))


def test_messages_are_due_in_the_order_of_their_jobs(engine: Engine) -> None:
    ids = [a_queued_job(engine) for _ in range(3)]
    assert due(engine, limit=2) == [(ids[0], 1), (ids[1], 1)]
    assert due(engine) == [(ids[2], 1)]


def test_two_relays_get_different_messages(engine: Engine) -> None:
    a_queued_job(engine)
    assert len(due(engine)) == 1
    assert due(engine) == []


def test_a_relay_that_waits_for_another_gets_only_what_is_left(postgres_url: str) -> None:
    db.migrate(postgres_url)
    engine = db.make_engine(postgres_url)
    first, second = a_queued_job(engine), a_queued_job(engine)
    with db.begin(engine) as one, db.begin(engine) as other:
        assert [row.job_id for row in store.due_outbox(one, 1)] == [first]
        assert [row.job_id for row in store.due_outbox(other, 5)] == [second]
    engine.dispose()


def test_a_message_held_by_a_relay_that_died_is_due_again(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    due(engine)
    with db.begin(engine) as s:
        s.execute(update(OutboxRow).values(next_try_at=db.db_now(s)))
    assert due(engine) == [(job_id, 1)]


def test_a_message_that_could_not_be_sent_is_tried_later(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    with db.begin(engine) as s:
        (row,) = store.due_outbox(s, 1)
        store.mark_failed(s, [row.id], delay_s=60)
    assert due(engine) == [] and outbox(engine)[0].tries == 1
    with db.begin(engine) as s:
        store.mark_failed(s, [row.id], delay_s=0)
    assert due(engine) == [(job_id, 1)]


def test_a_sent_message_is_not_due(engine: Engine) -> None:
    a_queued_job(engine)
    send_all(engine)
    assert due(engine) == []


def redispatched(engine: Engine) -> int:
    with db.begin(engine) as s:
        return store.redispatch(s, 15, fresh_s=30)


def test_a_lost_message_is_sent_again_as_soon_as_a_worker_that_is_idle_should_have_come(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    send_all(engine)
    with db.begin(engine) as s:
        store.register_worker(s, an_offer())
    age(engine, seconds=14)
    assert redispatched(engine) == 0
    age(engine, seconds=16)
    assert [redispatched(engine), redispatched(engine)] == [1, 0]
    assert due(engine) == [(job_id, 1)]


def test_while_all_workers_are_busy_or_being_emptied_a_message_is_given_more_time(engine: Engine) -> None:
    a_queued_job(engine)
    send_all(engine)
    with db.begin(engine) as s:
        for name in ("busy", "emptied"):
            store.register_worker(s, an_offer(name))
        store.worker_beat(s, "busy", "a-job")
        store.set_drain(s, "emptied", Drain.AFTER_JOB)
    age(engine, seconds=299)
    assert redispatched(engine) == 0
    age(engine, seconds=301)
    assert redispatched(engine) == 1


def test_a_message_waiting_to_be_sent_is_not_announced_twice(engine: Engine) -> None:
    a_queued_job(engine)
    assert redispatched(engine) == 0
    assert len(outbox(engine)) == 1


def test_a_late_mark_of_an_old_message_leaves_the_new_one_alone(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    with db.begin(engine) as s:
        (old,) = store.due_outbox(s, 1)
    claimed(engine, job_id)
    lapse(engine)
    with db.begin(engine) as s:
        store.mark_sent(s, [old.id])
    assert [(m.attempt, m.sent_at) for m in outbox(engine)] == [(2, None)]
