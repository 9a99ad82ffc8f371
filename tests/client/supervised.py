"""A supervisor (`python -m deploy.up`) as a real process, for the tests that need one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from client.home import running

T = TypeVar("T")
PATIENCE_S = 120.0


class Up:
    """One supervisor on one home."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.up", "--home", str(home), "--no-mlflow", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_clean_environment() | env,
        )
        self.children: list[psutil.Process] = []

    def ready(self, children: int = 4) -> dict[str, Any]:
        """Its address, once the API answers and so many children run."""
        address = until(lambda: self.alive() and running(self.home))
        until(lambda: self.alive() and httpx.get(f"{address['api_url']}/readyz").status_code == 200)
        until(lambda: len(self.pids()) == children)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return address

    def pids(self) -> dict[str, int]:
        """The direct children by what they are."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                for name, sign in SIGNS.items():
                    if sign in command:
                        found[name] = child.pid
        return found

    def ask_to_stop(self, number: int = signal.SIGINT) -> str:
        """Send the signal and return what it printed until its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=PATIENCE_S)[0]

    def left_over(self) -> list[psutil.Process]:
        """Children that outlived it."""
        _, alive = psutil.wait_procs(self.children, timeout=10)
        return [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]

    def alive(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"up ended: {self.process.communicate()[0]}")
        return True


SIGNS = {"broker": "valkey-server", "api": "api.main:create_app", "controller": "worker.controller", "worker": "celery"}


def until(question: Callable[[], T | bool | None]) -> T:
    """The first true answer. Fails after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError, psutil.NoSuchProcess):
            if answer := question():
                return answer  # type: ignore[return-value]
        time.sleep(0.1)
    pytest.fail("it did not happen in time")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}
