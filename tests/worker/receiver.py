"""A web server that takes webhooks, answers as it was told, and remembers."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from tests.certificates import Certificates


@dataclass
class Receiver:
    """`answers` are statuses or headers of a redirect, used in turn; the last one for all further messages."""

    answers: list[int | str] = field(default_factory=lambda: [200])
    silent: Event = field(default_factory=Event)  # set: it takes a message and answers byte by byte, without an end
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def ids(self) -> list[str]:
        return [headers["X-DSD-Delivery"] for headers, _ in self.got]


@contextmanager
def receiving(*answers: int | str, certificates: Certificates | None = None) -> Iterator[Receiver]:
    """A receiver on a free port of this machine; over TLS where there are certificates."""
    receiver = Receiver(list(answers) or [200])
    ended = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append((dict(self.headers), body))
            answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            while receiver.silent.is_set() and not ended.wait(0.02):
                self._drip()
            self.send_response(302 if isinstance(answer, str) else answer)
            if isinstance(answer, str):
                self.send_header("Location", answer)
            self.end_headers()

        def _drip(self) -> None:
            try:
                self.wfile.write(b"H")
            except OSError:
                receiver.silent.clear()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # callers hang up; that is what is tested
    receiver.url = f"http{'s' if certificates else ''}://localhost:{server.server_address[1]}/hook"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
