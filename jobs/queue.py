"""The Celery application. A message says only that a job may be runnable: an id and an attempt; the database decides.

So messages may be lost, doubled or late. They are acknowledged before the work starts and never fetched ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu import Connection

from jobs import broker
from jobs.resources import QUEUE

TASK = "dsd.run_job"

broker.use()

TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 600,  # s; only a message between receipt and start is ever unacknowledged
    "health_check_interval": 15,
    "socket_keepalive": True,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "connect_retries_timeout": 1,  # s; `publish` gives up then, a worker's consumer keeps trying all the same
    "retry_on_timeout": True,
    "global_keyprefix": "dsd:",
}


def make_app(broker_url: str) -> Celery:
    """The application that API, controller and worker share; the worker adds the task's body under TASK."""
    app = Celery("dsd", broker=verifying(broker_url), set_as_current=False)
    app.conf.update(
        task_acks_late=False,  # a lost worker is noticed by its lease, not by the broker
        task_reject_on_worker_lost=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_max_tasks_per_child=None,  # each job has a fresh process anyway; replacing children can lose messages
        task_ignore_result=True,
        result_backend=None,
        task_track_started=False,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_time_limit=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=TRANSPORT_OPTIONS,
        task_publish_retry=False,  # the outbox tries again
        worker_soft_shutdown_timeout=90,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        task_default_queue=QUEUE,
    )
    return app


def publish(app: Celery, job_id: str, attempt: int, *, queue: str = QUEUE) -> None:
    """Announce a job, once. Raises kombu.exceptions.OperationalError within seconds where the broker is away."""
    task_id = f"{job_id}:{attempt}"
    app.send_task(TASK, args=[job_id, attempt], task_id=task_id, queue=queue, ignore_result=True, retry=False)


def broker_alive(url: str) -> bool:
    """Whether the broker answers within two seconds."""
    return broker_trouble(url) is None


def broker_trouble(url: str) -> str | None:
    """Why the broker does not answer within two seconds; None where it does. Passwords are not repeated."""
    try:
        with connected(url):
            return None
    except Exception as error:  # a broker fails in many ways: away, wrong password, unknown certificate
        return str(error) or type(error).__name__


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A short look at the broker, which must answer within two seconds."""
    options = TRANSPORT_OPTIONS | {"socket_connect_timeout": 2, "socket_timeout": 2, "retry_on_timeout": False}
    with Connection(verifying(url), transport_options=options, connect_timeout=2) as connection:
        connection.ensure_connection(max_retries=0, timeout=2)
        yield connection


def verifying(url: str) -> str:
    """The same broker, or brokers separated by semicolons, with its certificate checked: kombu takes any certificate
    where a `rediss://` URL does not say otherwise."""
    return ";".join(_verifying(one) for one in url.split(";"))


def _verifying(url: str) -> str:
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=CERT_REQUIRED"
