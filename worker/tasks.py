"""The Celery side: `celery -A worker.tasks worker -P prefork -c 1 --without-gossip --without-mingle -O fair`.

The message is a hint that a job may be runnable; `worker.run` decides by the claim. A worker that is shut down tells
the process with the job through one byte of shared memory, which both have from the fork: no lock, nothing to tidy.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery, Task
from celery.signals import celeryd_init, worker_shutting_down

from jobs import queue
from jobs.settings import settings
from worker import run

_shutting_down = mmap.mmap(-1, 1)


def make_app(broker_url: str | None, command: Sequence[str] = run.TRAINING) -> Celery:
    """The application with the one task a worker has; `command` is the training process."""
    app = queue.make_app(broker_url or "memory://")  # importable without a broker; `_needs_a_broker` stops the worker

    @app.task(name=queue.TASK, bind=True, shared=False)  # type: ignore[untyped-decorator,unused-ignore]
    def run_job(self: Task, job_id: str, attempt: int) -> None:
        """Run one attempt at a job, if it is there to be run."""
        worker = f"{self.request.hostname}/{os.getpid()}"
        with _terminate_means_shutdown():
            run.run_job(settings(), job_id, attempt, worker=worker, stopping=_is_shutting_down, command=command)

    return app


def _is_shutting_down() -> bool:
    return _shutting_down[0] != 0


@celeryd_init.connect
def _needs_a_broker(**_: Any) -> None:
    if settings().broker_url is None:
        raise SystemExit("DSD_BROKER_URL is not set, for example redis://localhost:6379/0; `dsd up` starts a broker.")


@worker_shutting_down.connect
def _shut_down(*_: Any, **__: Any) -> None:
    _shutting_down[0] = 1


@contextmanager
def _terminate_means_shutdown() -> Iterator[None]:
    """Some process managers send SIGTERM to every process of a worker; the one with a job ends it in good order."""
    before = signal.signal(signal.SIGTERM, _shut_down)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app = make_app(settings().broker_url)
