"""A server whose every answer the test writes itself, byte by byte where it must: for connections that break."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = Callable[[BaseHTTPRequestHandler], None]


class Wire:
    """Gives the n-th request for a path the n-th answer, and the last one again after that."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                wire.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                waiting = wire.answers[path]
                (waiting.pop(0) if len(waiting) > 1 else waiting[0])(self)

            do_GET = do_POST = do_PATCH = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def on(self, path: str, *answers: Answer) -> None:
        self.answers[path] = list(answers)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def says(data: Any, status: int = 200, **headers: str) -> Answer:
    """A whole JSON answer."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        sends(json.dumps(data).encode(), status, **{"Content-Type": "application/json"} | headers)(request)

    return answer


def sends(body: bytes, status: int = 200, promised: int | None = None, **headers: str) -> Answer:
    """An answer of `body`; with `promised`, its Content-Length says so, and the connection breaks after the body."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body) if promised is None else promised))
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = promised is not None or request.close_connection

    return answer


def breaks(request: BaseHTTPRequestHandler) -> None:
    """The connection ends without an answer."""
    request.close_connection = True


@pytest.fixture(autouse=True)
def client_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's own files lie in the test's folder."""
    home = tmp_path / "home" / "dsd"
    monkeypatch.setenv("DSD_HOME", str(home))
    return home


@pytest.fixture
def wire() -> Iterator[Wire]:
    server = Wire()
    yield server
    server.close()
