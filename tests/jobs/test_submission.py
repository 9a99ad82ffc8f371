from __future__ import annotations

import pytest
from sqlalchemy import Engine

from jobs import db, store
from tests.jobs.builders import a_queued_job, a_running_job, a_spec, cancel, history, job, moves, outbox


def test_a_submitted_job_has_a_row_a_first_event_and_a_message(engine: Engine) -> None:
    row = job(engine, a_queued_job(engine, labels={"team": "roads"}))
    assert (row.status, row.attempt, row.fence, row.tracking) == ("queued", 1, 0, "pending")
    assert row.spec == a_spec(labels={"team": "roads"}).model_dump(mode="json")
    assert [(e.seq, e.type, e.data["from"], e.data["to"]) for e in history(engine, row.id)] == [
        (1, "status", None, "queued")
    ]
    assert [(m.job_id, m.attempt, m.sent_at) for m in outbox(engine)] == [(row.id, 1, None)]


def test_ids_rise_with_the_order_of_submission(engine: Engine) -> None:
    with db.begin(engine) as s:
        ids = [store.submit(s, a_spec(), max_attempts=1)[0].id for _ in range(20)]
    assert ids == sorted(set(ids))


def test_the_same_key_and_request_give_the_same_job(engine: Engine) -> None:
    made = []
    for _ in range(2):
        with db.begin(engine) as s:
            row, created = store.submit(s, a_spec(), max_attempts=1, idempotency_key="k", fingerprint="f")
            made.append((row.id, created))
    assert made[0][0] == made[1][0] and [created for _, created in made] == [True, False]
    assert len(outbox(engine)) == 1


def test_the_same_key_for_another_request_is_refused(engine: Engine) -> None:
    with db.begin(engine) as s:
        store.submit(s, a_spec(), max_attempts=1, idempotency_key="k")
    with pytest.raises(store.IdempotencyConflict, match="'k'"), db.begin(engine) as s:
        store.submit(s, a_spec(name="another"), max_attempts=1, idempotency_key="k")


def test_pages_are_newest_first_and_meet_without_gap(engine: Engine) -> None:
    ids = [a_queued_job(engine) for _ in range(5)]
    seen: list[str] = []
    more = True
    with db.reading(engine) as s:
        while more:
            rows, more = store.list_page(s, limit=2, after=seen[-1] if seen else None)
            seen += [row.id for row in rows]
    assert seen == ids[::-1]


def test_a_list_can_be_narrowed_by_each_property(engine: Engine) -> None:
    plain = a_queued_job(engine)
    named = a_queued_job(engine, name="special")
    labelled = a_queued_job(engine, labels={"team.eu": "roads"})
    gone = a_queued_job(engine)
    cancel(engine, gone)

    def found(**filters: object) -> list[str]:
        with db.reading(engine) as s:
            return [row.id for row in store.list_page(s, limit=9, **filters)[0]]  # type: ignore[arg-type]

    assert found(status="cancelled") == [gone]
    assert found(name="special") == [named]
    assert found(label=("team.eu", "roads")) == [labelled]
    assert found(label=("team.eu", "rails")) == []
    assert found(kind="distill") == []
    assert found(kind="train", status="queued") == [labelled, named, plain]


def test_cancelling_a_queued_job_ends_it_and_takes_its_message_away(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    assert cancel(engine, job_id) == "cancelled"
    assert moves(engine, job_id) == [(None, "queued"), ("queued", "cancelled")]
    assert job(engine, job_id).finished_at is not None
    assert outbox(engine) == []


def test_cancelling_twice_is_cancelling_once(engine: Engine) -> None:
    job_id = a_running_job(engine).job_id
    assert [cancel(engine, job_id), cancel(engine, job_id)] == ["cancelling", "cancelling"]
    assert moves(engine, job_id)[-1] == ("running", "cancelling")
    assert len(moves(engine, job_id)) == 3


def test_an_ended_job_cannot_be_cancelled(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    cancel(engine, job_id)
    with pytest.raises(store.NotCancellable) as caught:
        cancel(engine, job_id)
    assert caught.value.status == "cancelled"


def test_a_job_that_does_not_exist_is_said_so(engine: Engine) -> None:
    with pytest.raises(store.JobNotFound, match="'nothing'"):
        cancel(engine, "nothing")
    with db.reading(engine) as s:
        assert store.get(s, "nothing") is None


def test_history_can_be_read_on_from_a_number_and_by_type(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        store.append_events(s, claim, [({"type": "note", "message": "a"}, 10), ({"type": "progress"}, 20)])
        assert [e.seq for e in store.events_after(s, claim.job_id, 1, 2)] == [2, 3]
        assert [e.type for e in store.events_after(s, claim.job_id, 0, 9, types={"progress", "note"})] == [
            "note",
            "progress",
        ]
