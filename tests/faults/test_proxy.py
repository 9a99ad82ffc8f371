"""The proxy fails the way it is told; otherwise a case that passes would say nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.faults.proxy import Proxy
from tests.worker.service import until


class Echo:
    """A TCP server that says back what it hears, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard = bytearray()
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(4096):
                self.heard += data
                connection.sendall(data)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo, tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "socket", echo.listener.getsockname())
    yield proxy
    proxy.close()


def connect(proxy: Proxy) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(0.2)
    client.connect(str(proxy.address))
    return client


def test_what_is_sent_comes_back_later_with_a_delay_and_slowly_with_a_rate(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.settimeout(5)
        for delay_s, bytes_per_s in ((0.0, None), (0.1, None), (0.0, 50.0)):
            proxy.delay_s, proxy.bytes_per_s = delay_s, bytes_per_s
            began = time.monotonic()
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            assert time.monotonic() - began >= 2 * delay_s + (2 * 5 / bytes_per_s if bytes_per_s else 0)


@pytest.mark.parametrize("mode", ["blackhole", "half_open"])
def test_silence_keeps_a_connection_open_and_ends_with_the_mode(proxy: Proxy, echo: Echo, mode: str) -> None:
    with connect(proxy) as client:
        proxy.set(mode)  # type: ignore[arg-type]
        client.sendall(b"hello")
        with pytest.raises(TimeoutError):
            client.recv(5)
        assert bytes(echo.heard) == (b"hello" if mode == "half_open" else b"")
        proxy.set("pass")
        assert until(lambda: client.recv(5)) == b"hello"


def test_a_cut_ends_open_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        proxy.set("cut")
        assert client.recv(5) == b""
    with connect(proxy) as refused:
        assert refused.recv(5) == b""


def test_a_tcp_client_hears_a_reset(echo: Echo) -> None:
    proxy = Proxy(("127.0.0.1", 0), echo.listener.getsockname())
    with socket.create_connection(proxy.listens_at()) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(5)
    proxy.close()


@pytest.mark.parametrize("reaches_server", [True, False])
def test_a_commit_breaks_in_the_transaction_that_is_meant(proxy: Proxy, echo: Echo, reaches_server: bool) -> None:
    proxy.reset_at_commit(b"succeeded", reaches_server=reaches_server)
    with connect(proxy) as client:
        client.settimeout(5)
        for message in (b"running", b"COMMIT", b"succeeded"):
            client.sendall(message)
            assert client.recv(20) == message
        client.sendall(b"COMMIT")
        assert client.recv(20) == b""
    if reaches_server:
        until(lambda: echo.heard.endswith(b"succeededCOMMIT"))
    assert echo.heard.endswith(b"succeededCOMMIT") is reaches_server
    assert proxy.resets == 1
