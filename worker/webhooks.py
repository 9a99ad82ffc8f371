"""Tells the addresses that jobs name how the jobs ended, in a thread of its own: receivers may be slow or hostile.

The name of a host is resolved once, and the connection goes to the address that was checked: an answer of the DNS that
changes in between leads nowhere. No redirect is followed, no proxy asked, and of the answer only the status counts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import httpcore
from sqlalchemy import Engine

from dsd_core.errors import DsdError, SpecError
from jobs import db, store
from jobs.settings import Settings
from jobs.webhook_hosts import check_address, may_connect

log = logging.getLogger(__name__)

POLL_S = 1.0
BATCH = 16  # at once, so that a slow receiver keeps no other waiting
TIMEOUT_S = 10.0  # for the whole exchange
ANSWER_BYTES = 64 * 1024

Resolve = Callable[[str, int], list[str]]


class NotDelivered(DsdError):
    """The receiver did not take the message."""


@dataclass(frozen=True)
class Message:
    """What one receiver is told about the end of one job."""

    id: int
    url: str
    payload: dict[str, Any]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, best first. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def serve(settings: Settings, stop: Event) -> None:
    """Deliver what is due until `stop`."""
    engine = db.make_engine(settings.db_url)
    with ThreadPoolExecutor(BATCH, thread_name_prefix="webhook") as pool:
        while not stop.wait(POLL_S):
            try:
                deliver_due(engine, settings, pool)
            except Exception:  # such as a database that restarts
                log.exception("webhooks.round_failed")
    engine.dispose()


def deliver_due(engine: Engine, settings: Settings, pool: ThreadPoolExecutor, tls: ssl.SSLContext | None = None) -> int:
    """Try every message that is due once; says how many were delivered. `tls` default: the system's authorities."""
    with db.begin(engine) as s:
        due = [Message(row.id, row.url, row.payload) for row in store.due_webhooks(s, BATCH)]

    def attempt(message: Message) -> bool:
        try:
            deliver(message, settings, tls)
        except DsdError as error:
            _failed(engine, message, error)
            return False
        except Exception as error:  # whatever an answer makes a library do
            _failed(engine, message, NotDelivered(f"{type(error).__name__}: {error}"))
            return False
        with db.begin(engine) as s:
            store.webhook_delivered(s, message.id)
        return True

    return sum(pool.map(attempt, due))


def _failed(engine: Engine, message: Message, error: DsdError) -> None:
    with db.begin(engine) as s:
        again = store.webhook_failed(s, message.id, error.message, for_good=isinstance(error, SpecError))
    log.warning("webhook.failed id=%s again=%s error=%s", message.id, again, error.message)


def deliver(
    message: Message,
    settings: Settings,
    tls: ssl.SSLContext | None = None,
    names: Resolve = resolve,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Send a message, once. Raises SpecError where it may not be sent there, NotDelivered where it was not taken."""
    check_address(message.url, settings.webhook_hosts)
    body = json.dumps({"id": message.id, **message.payload}).encode()
    headers: dict[bytes | str, bytes | str] = {
        "Content-Type": "application/json",
        "User-Agent": "dsd-webhook/1",
        "X-DSD-Delivery": str(message.id),
        "Connection": "close",
    }
    if settings.webhook_secret is not None:
        headers["X-DSD-Signature"] = signature(settings.webhook_secret, int(time.time()), body)
    way = _CheckedWay(settings.webhook_hosts, names, time.monotonic() + timeout_s)
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
    try:
        with (
            httpcore.ConnectionPool(network_backend=way, ssl_context=tls or ssl.create_default_context()) as http,
            http.stream("POST", message.url, headers=headers, content=body, extensions={"timeout": timeouts}) as answer,
        ):
            status = answer.status
            _read_some(answer.iter_stream())
    except (httpcore.TimeoutException, TimeoutError):
        raise NotDelivered(f"There was no whole answer within {timeout_s:g} s.") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
        raise NotDelivered(f"It cannot be reached: {error or type(error).__name__}") from error
    if not 200 <= status < 300:
        redirected = " Redirects are not followed." if 300 <= status < 400 else ""
        raise NotDelivered(f"It answered {status}.{redirected}")


def signature(secret: str, at: int, body: bytes) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`, so that a message that was overheard cannot be sent later."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={digest.hexdigest()}"


def _read_some(chunks: Iterable[bytes]) -> None:
    """The end of an answer, so that the receiver sees no break; not of one that does not end."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > ANSWER_BYTES:
            return


class _CheckedWay(httpcore.SyncBackend):
    """Connects to an address that was checked, and lets nothing last beyond the deadline."""

    def __init__(self, hosts: Collection[str], names: Resolve, deadline: float) -> None:
        super().__init__()
        self._hosts = hosts
        self._names = names
        self._deadline = deadline

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        found = self._names(host, port)
        allowed = next((address for address in found if may_connect(host, address, self._hosts)), None)
        if allowed is None:
            raise NotDelivered(
                f"{host} leads to {', '.join(found)[:200]}, which is no public address and is not in DSD_WEBHOOK_HOSTS."
            )
        return _Hurried(super().connect_tcp(allowed, port, timeout=_left(self._deadline)), self._deadline)


class _Hurried(httpcore.NetworkStream):
    """A connection whose every step must be over at the deadline, however little it takes each time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Hurried(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left
