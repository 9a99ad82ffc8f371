"""The worker's side of `dsd_core.warm`: boots the process that has torch imported, and has it fork those that train.

Its answers come in order, so the exit code of a process that has ended is found by reading on.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dsd_core.parent_death import die_with_parent
from dsd_core.warm_request import PACKET_BYTES, ROOM, ROOM_BYTES, Request

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # a fork takes milliseconds; a server that takes longer is stuck
LOST = -9  # of a process whose server died: the kernel kills it


class ServerGone(Exception):
    """There is no server, it is not ready yet, or it has died: start the process in another way."""


class ForkServer:
    """One server process at most; `boot` replaces one that has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._ready = False
        self._ended: dict[int, int] = {}

    def boot(self) -> None:
        """Start the server in the background, unless it runs. Call from the main thread: it dies with that."""
        if not sys.platform.startswith("linux") or (self._process is not None and self._process.poll() is None):
            return
        self.close()
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dsd_core.warm", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, ROOM: "-" * ROOM_BYTES},
                pass_fds=[theirs.fileno()],
                preexec_fn=die_with_parent(),
            )

    @property
    def ready(self) -> bool:
        """It has imported torch."""
        try:
            self._ready = self._ready or "ready" in (self._answer(0) or {})
        except ServerGone:
            return False
        return self._ready

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def fork(self, arguments: list[str], environment: dict[str, str], log: Path, shown: list[str]) -> int:
        """The pid of a new `python -m dsd_core ARGUMENTS`. Raises ServerGone where there is no server that is ready."""
        if not self.ready or self._link is None:
            raise ServerGone
        try:
            self._link.send(Request(arguments, environment, str(log), shown).packet())
        except OSError as error:
            raise ServerGone from error
        while (answer := self._answer(ANSWER_S)) is not None:
            if "exit_code" not in answer:
                return int(answer["pid"])
            self._ended[answer["pid"]] = answer["exit_code"]  # of one that nobody has waited for
        self.close()
        raise ServerGone

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """The exit code of a process it has forked; None while that runs."""
        deadline = time.monotonic() + timeout_s
        while pid not in self._ended:
            try:
                answer = self._answer(max(0.0, deadline - time.monotonic()))
            except ServerGone:
                return LOST
            if answer is None:
                return None
            self._ended[answer["pid"]] = answer["exit_code"]
        return self._ended.pop(pid)

    def close(self) -> None:
        """End the server, and with it whatever it has forked."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._ready = False
        self._ended.clear()

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        """The next packet; None where none comes in time. Raises ServerGone."""
        if self._link is None:
            raise ServerGone
        if not select.select([self._link], [], [], timeout_s)[0]:
            return None
        try:
            packet = self._link.recv(PACKET_BYTES)
        except OSError as error:
            raise ServerGone from error
        if not packet:
            raise ServerGone
        answer: dict[str, Any] = json.loads(packet)
        return answer
