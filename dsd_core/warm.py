"""`python -m dsd_core.warm FD`: a process that has torch imported already, and forks one that trains for each request.

FD is a SOCK_SEQPACKET socket inherited from the worker; each packet is a JSON object. Requests are those of
`warm_request`. Answers: `{"ready": true}` once all is imported, `{"pid": N}` for a request, and
`{"pid": N, "exit_code": E}` when that process has ended, E negative for the signal it died of. The end of the socket
ends the server.

The server computes nothing and never asks for a GPU, so that it has one thread and no CUDA state to inherit: what it
forks is as good as a process started anew. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from io import TextIOWrapper
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector, SelectorKey

from dsd_core.parent_death import die_with
from dsd_core.warm_request import PACKET_BYTES, ROOM, ROOM_BYTES, Request

POLITE = {signal.SIGTERM, signal.SIGINT}
ENV_START = 47  # env_start among the fields of proc(5)'s stat that come after the name


def main() -> None:
    """Serve; in a forked process, be `python -m dsd_core`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)  # the end of the socket is what ends this process
    link = socket.socket(fileno=int(sys.argv[1]))
    import dsd_core.__main__
    import dsd_core.attempt
    import dsd_core.train

    gc.collect()
    gc.freeze()  # the collector touches what it looks at, and touched pages are no longer shared
    server = os.getpid()
    if request := serve(link):
        become(request, server)
        dsd_core.__main__.main()


def serve(link: socket.socket) -> Request | None:
    """Answer requests until the socket ends, then None; in each forked process, its request."""
    with DefaultSelector() as selector, link:
        selector.register(link, EVENT_READ)
        tell(link, ready=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not link:
                    tell_end(link, selector, key)
                elif not (packet := link.recv(PACKET_BYTES)):
                    return None
                elif (pid := os.fork()) == 0:
                    return Request(**json.loads(packet))
                else:
                    selector.register(os.pidfd_open(pid), EVENT_READ, pid)
                    tell(link, pid=pid)


def tell_end(link: socket.socket, selector: DefaultSelector, key: SelectorKey) -> None:
    """Of a process that has ended: its pidfd can be read."""
    selector.unregister(key.fileobj)
    os.close(key.fd)
    _, status = os.waitpid(key.data, 0)
    tell(link, pid=key.data, exit_code=os.waitstatus_to_exitcode(status))


def tell(link: socket.socket, **answer: int) -> None:
    link.send(json.dumps(answer).encode())


def become(request: Request, server: int) -> None:
    """Make a forked process what one started by the worker would be: session, signals, environment, output."""
    die_with(server)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, POLITE)
    os.environ.pop(ROOM, None)
    os.environ.update(request.environment)
    show({name: request.environment[name] for name in request.shown})
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor, number in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(write_through=True)  # as PYTHONUNBUFFERED has it
    sys.argv[1:] = request.arguments


def show(variables: dict[str, str]) -> None:
    """Let /proc/self/environ hold these variables, as it does for a process started with them.

    It is a view of the memory in which this program's environment was handed over, where ROOM keeps a place free.
    """
    text = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    assert len(text) <= ROOM_BYTES
    place = Path("/proc/self/environ").read_bytes().index(f"{ROOM}=".encode())
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[ENV_START])
    ctypes.memmove(start + place, text, len(text))


if __name__ == "__main__":
    main()
