"""The Celery side: `celery -A worker.tasks worker -P prefork -c 1 --without-gossip --without-mingle -O fair`.

A message is a hint that there is work; `worker.run` takes what is most urgent. The parent process says that the worker
is there (`worker.life`) and is told to shut down; its one pool process runs the jobs.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

from celery import Celery, Task
from celery.signals import celeryd_init, worker_process_init, worker_ready, worker_shutting_down
from kombu import Queue

from dsd_core.errors import DsdError
from jobs import queue
from jobs.settings import settings
from worker import run
from worker.ears import Ears, heard_by
from worker.life import Life
from worker.machine import offer_of
from worker.slot import TRAINING, Slot

_slot: Slot | None = None  # of the worker that this process is, or is forked from


def make_app(broker_url: str | None, command: Sequence[str] = TRAINING) -> Celery:
    """The application with the one task a worker has; `command` is the training process."""
    app = queue.make_app(broker_url or "memory://")  # importable without a broker; `_be_a_worker` stops the worker

    @app.task(name=queue.TASK, shared=False, bind=True)  # type: ignore[untyped-decorator,unused-ignore]
    def run_job(self: Task, job_id: str, attempt: int) -> None:
        """Run the jobs there are; those in the message may be among them."""
        assert _slot is not None
        with _terminate_means_shutdown():
            run.work(_slot)

    @celeryd_init.connect(weak=False)
    def be_a_worker(sender: str, instance: Any, conf: Any, **_: Any) -> None:
        if instance.app is app:
            _be_a_worker(sender, conf, command)

    return app


def _be_a_worker(name: str, conf: Any, command: Sequence[str]) -> None:
    """Before the pool is forked: what this worker is, and which queues it listens to."""
    global _slot
    if settings().broker_url is None:
        raise SystemExit("DSD_BROKER_URL is not set, for example redis://localhost:6379/0; `dsd up` starts a broker.")
    try:
        _slot = Slot(settings(), offer_of(settings(), name), command=command)
    except DsdError as error:
        raise SystemExit(str(error)) from error
    conf.task_queues = [Queue(queue_name) for queue_name in heard_by(_slot.offer)]


@worker_process_init.connect
def _be_its_pool_process(**_: Any) -> None:
    """Also of one that takes the place of a process that was killed with its job."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a process with a network in it would fill the disk
    if _slot is not None:
        _slot.board.job_id = None
        _slot.warm_up()


@worker_ready.connect
def _live(sender: Any, **_: Any) -> None:
    assert _slot is not None
    life = Life(settings(), _slot.offer, _slot.board, Ears(sender.app, _slot.offer))

    def live() -> None:
        life.run()
        os._exit(1)  # it is deaf: whoever started this worker starts it anew

    Thread(target=live, name="life", daemon=True).start()


@worker_shutting_down.connect
def _shut_down(*_: Any, **__: Any) -> None:
    if _slot is not None:
        _slot.board.shutting_down = True


@contextmanager
def _terminate_means_shutdown() -> Iterator[None]:
    """Some process managers send SIGTERM to every process of a worker; the one with a job ends it in good order."""
    before = signal.signal(signal.SIGTERM, _shut_down)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app = make_app(settings().broker_url)
