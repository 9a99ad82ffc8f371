"""Asking a server from many kept connections, and what that takes of the server."""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

MIB = 2**20
SILENCE_S = 60.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.I)


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """A whole request as bytes; `body` is sent as JSON, and `_` in names of headers as `-`."""
    sent = b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"Host": "localhost", "Content-Length": str(len(sent))} | (
        {"Content-Type": "application/json"} if sent else {}
    )
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + sent


class Line:
    """A connection that is kept: as little of a client as there can be, so that its own cost is small."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = memoryview(bytearray(MIB))

    def ask(self, asked: bytes, take: Callable[[memoryview], Any] = lambda part: None) -> int:
        """Send a request and read all of its answer, each part given to `take`. Returns the bytes of the body.

        Raises SystemExit where the answer is no success.
        """
        self._socket.sendall(asked)
        head, body = b"", b""
        while not body:
            head += self._more(MIB)
            head, body, rest = head.partition(b"\r\n\r\n")
            if not body:
                continue
        length = int(LENGTH.search(head + b"\r\n")[1])
        if not head.startswith((b"HTTP/1.1 2",)):
            raise SystemExit(f"{asked.splitlines()[0].decode()}: {head.decode()}")
        take(memoryview(rest))
        left = length - len(rest)
        while left:
            part = self._more(left)
            take(part)
            left -= len(part)
        return length

    def close(self) -> None:
        self._socket.close()

    def _more(self, most: int) -> memoryview:
        got = self._socket.recv_into(self._room, min(most, MIB))
        if not got:
            raise SystemExit("The server hung up.")
        return self._room[:got]


def answer(port: int, asked: bytes) -> Any:
    """The JSON that one request is answered with."""
    parts: list[bytes] = []
    line = Line(port)
    line.ask(asked, lambda part: parts.append(bytes(part)))
    line.close()
    return json.loads(b"".join(parts))


@dataclass(frozen=True)
class Taken:
    """What a number of requests took."""

    requests: int
    bytes: int
    seconds: float
    cpu_s: float


class Meter:
    """CPU seconds and memory of a process and those it has started."""

    def __init__(self, pid: int) -> None:
        root = psutil.Process(pid)
        self._processes = [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def mib(self) -> float:
        """Memory that belongs to these processes alone."""
        return sum(process.memory_full_info().uss for process in self._processes) / MIB


def drive(port: int, meter: Meter, asked: Sequence[bytes], clients: int) -> Taken:
    """Send these requests from `clients` connections at once, each sending its next when the last was answered."""
    lines = [Line(port) for _ in range(clients)]

    def work(number: int) -> int:
        return sum(lines[number].ask(one) for one in asked[number::clients])

    with ThreadPoolExecutor(clients) as pool:
        cpu, start = meter.cpu_s(), time.perf_counter()
        total = sum(pool.map(work, range(clients)))
        seconds, cpu = time.perf_counter() - start, meter.cpu_s() - cpu
    for line in lines:
        line.close()
    return Taken(len(asked), total, seconds, cpu)


def spread(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Median, extremes and number of some figures."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()} | {"runs": len(values)}


@contextmanager
def running(process: subprocess.Popen[bytes], port: int) -> Iterator[Meter]:
    """Wait until a server answers on `port`; it is ended at the end."""
    try:
        deadline = time.monotonic() + SILENCE_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{process.args} did not start.")
            time.sleep(0.05)
        yield Meter(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
