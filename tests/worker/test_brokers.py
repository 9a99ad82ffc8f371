"""Brokers as operators lock them down: over TCP, with a user and a password, with TLS in front."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
import redis

from deploy.health import why_node_is_silent
from jobs import queue
from jobs.status import Status
from tests.certificates import Certificates, make_certificates
from tests.servers import ShortFolder, Valkey
from tests.worker.fleet import QUICK, Fleet, free_port
from tests.worker.service import Service, until

USER = "user dsd on >pass%word ~dsd:* &* +@all -@admin -@dangerous"
PASSWORD = "pass%25word"  # as a URL has it


class LockedValkey(Valkey):
    """On TCP, for the user `dsd` alone, who may do what Celery needs and touch no other keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        (folder / "users").write_text(f"user default off\nuser root on >root ~* &* +@all\n{USER}\n")
        self.options |= {"port": self.port, "bind": "127.0.0.1", "aclfile": folder / "users"}

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), username="root", password="root")


@pytest.fixture
def locked() -> Iterator[LockedValkey]:
    with ShortFolder() as folder:
        server = LockedValkey(folder)
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def tls_in_front_of(port: int, certificates: Certificates) -> Iterator[int]:
    """A port that speaks TLS and hands on what it hears, as stunnel does. (The Valkey of the tests has no TLS.)"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    loop = asyncio.new_event_loop()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", port)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(pump(reader, server), pump(answers, writer))
        server.transport.abort()
        writer.transport.abort()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)

    async def end(server: asyncio.Server) -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def runs_a_job(service: Service, url: str, folder: Path) -> None:
    """The controller announces a job over this broker, a worker takes it, and both are found healthy."""
    fleet = Fleet(service.settings.model_copy(update={"broker_url": url, **QUICK}), folder)
    job = service.submit("steps=1 finish")
    try:
        controller, worker = fleet.controller(), fleet.worker("one@here")
        until(lambda: service.row(job).status == Status.SUCCEEDED)
        assert why_node_is_silent(url, "one@here") is None
        for process in (controller, worker):
            process.send_signal(signal.SIGTERM)
        assert (controller.wait(60), worker.wait(60)) == (0, 0)
    finally:
        fleet.end()


def test_a_locked_down_broker_over_tcp_runs_jobs(service: Service, locked: LockedValkey, tmp_path: Path) -> None:
    url = f"redis://dsd:{PASSWORD}@127.0.0.1:{locked.port}/0"
    assert queue.broker_alive(url)
    runs_a_job(service, url, tmp_path)
    foreign = [key for key in locked.client().keys() if not key.startswith(b"dsd:")]
    assert foreign == []


@pytest.mark.slow
def test_a_broker_behind_tls_runs_jobs(
    service: Service, locked: LockedValkey, certificates: Certificates, tmp_path: Path
) -> None:
    with tls_in_front_of(locked.port, certificates) as port:
        url = f"rediss://dsd:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={certificates.authority}"
        assert queue.broker_alive(url)
        runs_a_job(service, url, tmp_path)


@pytest.mark.parametrize(
    ("user", "says"), [("dsd:wrong@", "username-password pair"), ("", "Authentication required"), ("x:y@", "username")]
)
def test_a_broker_that_refuses_us_is_not_alive_and_says_why(locked: LockedValkey, user: str, says: str) -> None:
    url = f"redis://{user}127.0.0.1:{locked.port}/0"
    assert not queue.broker_alive(url)
    trouble = queue.broker_trouble(url)
    assert trouble is not None and says in trouble and "wrong" not in trouble.replace("wrongpass", "")


def test_a_broker_whose_certificate_nobody_we_trust_has_signed_is_refused(
    locked: LockedValkey, certificates: Certificates
) -> None:
    with tls_in_front_of(locked.port, certificates) as port:
        url = f"rediss://dsd:{PASSWORD}@localhost:{port}/0"
        assert "certificate verify failed" in str(queue.broker_trouble(url))
        assert "certificate verify failed" in str(queue.broker_trouble(f"{url}?ssl_cert_reqs=CERT_REQUIRED"))
        assert queue.broker_trouble(f"{url}?ssl_cert_reqs=CERT_NONE") is None


def test_a_certificate_is_asked_of_each_broker_whose_url_leaves_it_open() -> None:
    required = "ssl_cert_reqs=CERT_REQUIRED"
    assert queue.verifying("rediss://a/0;rediss://b/0?ssl_ca_certs=/c;redis://d/0") == (
        f"rediss://a/0?{required};rediss://b/0?ssl_ca_certs=/c&{required};redis://d/0"
    )
