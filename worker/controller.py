"""`python -m worker.controller`: publishes the outbox, takes jobs from lost workers, keeps MLflow up to date, calls
webhooks, and frees the storage by the rules of retention.

Safe to run twice: outbox rows are handed to one relay at a time and a doubled message is refused by the claim, every
move of a status is guarded by what it was, and tracking is done by whoever holds its lock.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from dsd_core.fault_points import fault_point
from jobs import db, queue, retention, store
from jobs.resources import demand_of, queue_of
from jobs.settings import Settings, settings
from jobs.storage import Storage, signals_of, storage_of
from worker import webhooks

log = logging.getLogger(__name__)

RELAY_S = 0.25
RELAY_BATCH = 50
LONGEST_DELAY_S = 60.0
PRUNE_S = 3600.0
FORGET_S = 86_400.0  # a worker that was not heard of for a day is no longer listed
END_S = 20.0  # for the other threads to finish the call they are in


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if settings().broker_url is None:
        raise SystemExit("DSD_BROKER_URL is not set, for example redis://localhost:6379/0; `dsd up` starts a broker.")
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(settings(), stop)


def serve(settings: Settings, stop: Event) -> None:
    """Reconcile in this thread, and do the rest in others, until `stop`: what keeps silent holds up nobody."""
    assert settings.broker_url is not None
    engine = db.make_engine(settings.db_url)
    app = queue.make_app(settings.broker_url)
    reconciler = Reconciler(engine, settings)
    relaying = Thread(target=_relay, args=(engine, app, stop), name="relay", daemon=True)
    tracking = Thread(target=_track, args=(settings, stop), name="tracking", daemon=True)
    storage = storage_of(settings)
    calling = Thread(target=webhooks.serve, args=(settings, stop), name="webhooks", daemon=True)
    for thread in (relaying, tracking, calling):
        thread.start()
    # Not waited for at the end: a deletion that is cut short is taken up again.
    Thread(target=_prune, args=(settings, engine, storage, stop), name="retention", daemon=True).start()
    log.info("controller.started")
    while not stop.is_set():
        if reconciler.is_due():
            _surviving(reconciler.tick)
        stop.wait(RELAY_S)
    for thread in (relaying, tracking, calling):
        thread.join(END_S)
    engine.dispose()
    log.info("controller.ended")


def relay(engine: Engine, app: Celery) -> int:
    """Publish what is due; returns how many went out. While the broker is away they wait, longer each time."""
    with db.begin(engine) as s:
        due = [(row, _queue_of(s, row.job_id)) for row in store.due_outbox(s, RELAY_BATCH)]
    if due:
        fault_point("relay.after_take")
    sent: list[int] = []
    for row, name in due:
        try:
            queue.publish(app, row.job_id, row.attempt, queue=name)
        except Exception as error:  # a broker fails in many ways: away, full, read-only, wrong password
            log.warning("relay.broker_fails waiting=%s error=%s", len(due) - len(sent), error)
            break
        sent.append(row.id)
        fault_point("relay.after_publish")
    if due:
        with db.begin(engine) as s:
            store.mark_sent(s, sent)
            for row, _ in due[len(sent) :]:
                store.mark_failed(s, [row.id], delay_s=min(2.0**row.tries, LONGEST_DELAY_S))
            fault_point("relay.before_mark")
        fault_point("relay.after_mark")
    return len(sent)


def _queue_of(s: Session, job_id: str) -> str:
    job = store.get(s, job_id)
    return queue_of(demand_of(job.spec if job else {}))


@dataclass
class Reconciler:
    """Takes jobs from workers that are not heard of, and announces again the queued jobs that nobody claimed."""

    engine: Engine
    settings: Settings
    ticked_at: float | None = None  # time.monotonic() of the last round that reached the database
    patient_until: float = 0.0

    def is_due(self) -> bool:
        return self.ticked_at is None or time.monotonic() - self.ticked_at >= self.settings.tick_s

    def tick(self) -> None:
        """One round. After a time in which the database was not seen, workers get one lease to be heard of again.

        They may have been cut off just as this process was; a start counts as such a time.
        """
        now = time.monotonic()
        if self.ticked_at is None or now - self.ticked_at > 2 * self.settings.tick_s + 1:
            self.patient_until = now + self.settings.lease_s
        with db.begin(self.engine) as s:
            lost = store.expire_leases(s) if now >= self.patient_until else []
            store.restand(s)
            announced = store.redispatch(s, self.settings.redispatch_s, fresh_s=self.settings.lease_s)
            store.forget_workers(s, FORGET_S)
            fault_point("reconciler.before_commit")
        fault_point("reconciler.after_commit")
        self.ticked_at = time.monotonic()
        if lost or announced:
            log.warning("reconciler.tick lost=%s announced_again=%s", lost, announced)


def _surviving(step: Callable[[], object]) -> None:
    """An error of one round, such as a database that restarts, must not end the controller."""
    try:
        step()
    except Exception:
        log.exception("controller.round_failed")


def _prune(settings: Settings, engine: Engine, storage: Storage, stop: Event) -> None:
    """Every hour. What was written down before this process ended is deleted by the next round."""
    while not stop.is_set():
        _surviving(lambda: retention.prune(engine, storage, retention.rules_of(settings)))
        _surviving(lambda: retention.prune_signals(signals_of(settings)))
        stop.wait(PRUNE_S)


def _relay(engine: Engine, app: Celery, stop: Event) -> None:
    while not stop.is_set():
        _surviving(lambda: relay(engine, app))
        stop.wait(RELAY_S)


def _track(settings: Settings, stop: Event) -> None:
    """Imported here because mlflow takes seconds to load, and a job that was submitted should not wait for it."""
    if settings.mlflow_url is None:
        log.info("tracking.off: DSD_MLFLOW_URL is not set")
        return
    from worker.tracking import Tracker

    Tracker(settings, settings.mlflow_url).run(stop)


if __name__ == "__main__":
    main()
