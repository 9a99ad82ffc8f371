"""The list of workers: what each has, whether it is alive, and whether it shall be emptied."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, update

from jobs import db, store
from jobs.status import Drain
from jobs.tables import WorkerRow
from tests.jobs.builders import an_offer


def test_a_worker_hears_that_it_shall_be_emptied_also_after_it_was_started_again(engine: Engine) -> None:
    with db.begin(engine) as s:
        store.register_worker(s, an_offer(labels={"zone": "a"}))
        assert store.worker_beat(s, "worker-1", "a-job") is None
        assert store.set_drain(s, "worker-1", Drain.NOW).job_id == "a-job"
        store.register_worker(s, an_offer(memory_gib=16.0))
        assert store.worker_beat(s, "worker-1", None) is Drain.NOW
        store.set_drain(s, "worker-1", None)
        assert store.worker_beat(s, "worker-1", None) is None
        (row,) = store.list_workers(s)
    assert (row.memory_gib, row.labels, row.job_id) == (16.0, {}, None)


def test_a_worker_that_is_not_heard_of_is_not_alive_and_later_forgotten(engine: Engine) -> None:
    with db.begin(engine) as s:
        for name in ("alive", "silent"):
            store.register_worker(s, an_offer(name))
        now = db.db_now(s)
        silent = update(WorkerRow).where(WorkerRow.name == "silent")
        s.execute(silent.values(heartbeat_at=now - timedelta(seconds=100)))
        assert [row.name for row in store.live_workers(s, now, fresh_s=30)] == ["alive"]
        assert store.forget_workers(s, after_s=200) == 0
        assert store.forget_workers(s, after_s=50) == 1
        assert [row.name for row in store.list_workers(s)] == ["alive"]


def test_an_unknown_worker_is_named_with_those_that_are_known(engine: Engine) -> None:
    with db.begin(engine) as s:
        store.register_worker(s, an_offer())
        with pytest.raises(store.WorkerNotFound, match="no worker 'worker-9'") as caught:
            store.set_drain(s, "worker-9", Drain.NOW)
    assert caught.value.hint is not None and "worker-1" in caught.value.hint
