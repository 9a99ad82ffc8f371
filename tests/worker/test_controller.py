"""The controller's rounds, one at a time."""

from __future__ import annotations

import time
from contextlib import closing
from threading import Event, Thread

from sqlalchemy import text

from jobs import db, queue, store
from jobs.status import Reason, Status
from jobs.storage import signals_of
from tests.worker.service import Service, until
from worker.controller import Reconciler, relay, serve

NOWHERE = "redis://127.0.0.1:9/0"


def lose_the_worker(service: Service, job: str) -> None:
    with db.begin(service.engine) as s:
        assert store.claim(s, job, 1, "lost", 30)
        s.execute(text("UPDATE jobs SET lease_expires_at = '2000-01-01'"))


def test_a_message_stays_in_the_outbox_while_the_broker_is_away(service: Service, broker_url: str) -> None:
    job = service.submit("finish")
    assert relay(service.engine, queue.make_app(NOWHERE)) == 0
    with db.reading(service.engine) as s:
        assert s.execute(text("SELECT tries, sent_at FROM outbox")).all() == [(1, None)]
    app = queue.make_app(broker_url)
    assert until(lambda: relay(service.engine, app)) == 1
    assert relay(service.engine, app) == 0
    assert service.row(job).status == Status.QUEUED


def test_teachers_signals_beyond_their_limit_go_in_a_round_of_the_controller(service: Service) -> None:
    settings = service.settings.model_copy(update={"broker_url": NOWHERE, "signals_bytes": 0})
    signals, stop = signals_of(service.settings), Event()
    signals.open("c0ffee", [1000], {}).close()
    controller = Thread(target=serve, args=(settings, stop))
    controller.start()
    until(lambda: not signals.entries())
    stop.set()
    controller.join()


def test_a_job_for_a_gpu_is_announced_where_workers_with_gpus_listen(service: Service, broker_url: str) -> None:
    job = service.submit("finish", resources={"device": "cuda"})
    app = queue.make_app(broker_url)
    relay(service.engine, app)
    with app.connection() as connection, closing(connection.SimpleQueue("jobs.cuda")) as messages:
        assert messages.get(timeout=5).payload[0] == [job, 1]


def test_a_job_of_a_lost_worker_is_queued_again_once_workers_had_one_lease_to_be_heard(service: Service) -> None:
    job = service.submit("finish")
    lose_the_worker(service, job)
    settings = service.settings.model_copy(update={"lease_s": 0.5})
    reconciler = Reconciler(service.engine, settings)
    reconciler.tick()
    assert service.row(job).status == Status.RUNNING

    def queued() -> bool:
        reconciler.tick()
        return service.row(job).status == Status.QUEUED

    began = time.monotonic()
    until(queued)
    assert time.monotonic() - began < 5
    row = service.row(job)
    assert (row.attempt, row.reason) == (2, Reason.WORKER_LOST)


def test_after_a_time_without_the_database_workers_get_one_lease_again(service: Service) -> None:
    job = service.submit("finish")
    reconciler = Reconciler(service.engine, service.settings.model_copy(update={"lease_s": 0.01, "tick_s": 0.1}))
    reconciler.tick()
    reconciler.tick()
    lose_the_worker(service, job)
    reconciler.settings = service.settings
    assert reconciler.ticked_at is not None
    reconciler.ticked_at -= 60
    reconciler.tick()
    assert service.row(job).status == Status.RUNNING


def test_a_queued_job_nobody_claims_is_announced_again(service: Service, broker_url: str) -> None:
    service.submit("finish")
    app = queue.make_app(broker_url)
    relay(service.engine, app)
    reconciler = Reconciler(service.engine, service.settings.model_copy(update={"redispatch_s": 0.2}))

    def announced_again() -> int:
        reconciler.tick()
        return relay(service.engine, app)

    assert until(announced_again) == 1
