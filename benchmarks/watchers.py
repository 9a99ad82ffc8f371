"""Many watchers of one job in a process of their own: `python -m benchmarks.watchers PORT JOB WATCHERS FIRST LAST`.

Says `ready` when every watcher has seen the event FIRST, and when all streams have ended one line of JSON: for each
later event when each watcher had it (the system's monotonic clock), and how often an event was not the next one. A
tenth of them hang up in the middle and come again with Last-Event-ID.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from collections import defaultdict

from benchmarks.load import SILENCE_S, request

LINE = re.compile(rb"(?:^|\n)(?:id: (\d+)|(event: end))(?=\n)")
CUT_EACH = 10


class Watcher:
    """One stream, and how far it has come."""

    def __init__(self, port: int, job_id: str, cut_at: int | None) -> None:
        self.port, self.path, self.cut_at = port, f"/api/v1/jobs/{job_id}/events", cut_at
        self.seen, self.wrong, self.ended = 0, 0, False
        self.connect()

    def connect(self) -> None:
        self.rest = b""
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=SILENCE_S)
        self.socket.sendall(request("GET", self.path, Accept="text/event-stream", Last_Event_ID=str(self.seen)))

    def read(self) -> list[int]:
        """The events that have come."""
        data = self.socket.recv(65536)
        if not data:
            raise SystemExit("A stream was cut.")
        text, came = self.rest + data, []
        for found in LINE.finditer(text):
            if found[2]:
                self.ended = True
                continue
            seq = int(found[1])
            self.wrong += seq != self.seen + 1
            self.seen = seq
            came.append(seq)
        self.rest = text[text.rfind(b"\n") :]
        return came


def watch(port: int, job_id: str, count: int, first: int, last: int) -> dict[str, object]:
    middle = (first + last) // 2
    watchers = [Watcher(port, job_id, None if number % CUT_EACH else middle) for number in range(count)]
    selector = selectors.DefaultSelector()
    for watcher in watchers:
        selector.register(watcher.socket, selectors.EVENT_READ, watcher)
    times: dict[int, list[float]] = defaultdict(list)
    waiting, open_ = count, count
    while open_:
        for key, _ in selector.select(SILENCE_S):
            watcher = key.data
            came, now = watcher.read(), time.monotonic()
            for seq in came:
                times[seq].append(now)
                waiting -= seq == first
            if waiting == 0:
                print("ready", flush=True)
                waiting = -1
            if watcher.cut_at is not None and watcher.seen >= watcher.cut_at:
                watcher.cut_at = None
                selector.unregister(watcher.socket)
                watcher.socket.close()
                watcher.connect()
                selector.register(watcher.socket, selectors.EVENT_READ, watcher)
            elif watcher.ended:
                selector.unregister(watcher.socket)
                watcher.socket.close()
                open_ -= 1
    late = {seq: found for seq, found in times.items() if seq > first}
    return {"times": late, "wrong": sum(watcher.wrong for watcher in watchers), "last": [w.seen for w in watchers]}


if __name__ == "__main__":
    port_, job_, *numbers = sys.argv[1:]
    print(json.dumps(watch(int(port_), job_, *map(int, numbers))), flush=True)
