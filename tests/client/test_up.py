"""`python -m deploy.up` as a real process with real children: API, controller, worker and broker."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

    def ready(self) -> dict[str, Any]:
        """Its address, once the API answers and all children run."""
        address = until(lambda: self._alive() and running(self.home))
        until(lambda: self._alive() and httpx.get(f"{address['api_url']}/readyz").status_code == 200)
        until(lambda: len(self.pids()) == 4)
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

    def _alive(self) -> bool:
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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts supervisors; kills what is left of them."""
    started: list[Up] = []

    def start(*arguments: str, home: Path | None = None, **env: str) -> Up:
        started.append(Up(home or tmp_path / "home", *arguments, **env))
        return started[-1]

    yield start
    for up in started:
        up.process.kill()
        up.process.communicate()


def test_ctrl_c_stops_everything_in_good_order_and_leaves_no_process(start: Callable[..., Up]) -> None:
    up = start()
    address = up.ready()
    assert address["pid"] == up.process.pid
    said = up.ask_to_stop()
    assert up.process.returncode == 0, said
    assert up.left_over() == []
    assert re.findall(r"stopped +(\S+)", said) == ["worker-1", "controller", "api", "broker"]
    assert running(up.home) is None


def test_kill_9_of_the_supervisor_leaves_no_process(start: Callable[..., Up]) -> None:
    up = start()
    up.ready()
    assert len(up.children) > 4
    up.process.kill()
    assert up.left_over() == []


def test_a_killed_child_is_started_again_and_said_so(start: Callable[..., Up]) -> None:
    up = start()
    up.ready()
    first = up.pids()["worker"]
    os.kill(first, signal.SIGKILL)
    until(lambda: up.pids().get("worker", first) != first)
    said = up.ask_to_stop(signal.SIGTERM)
    assert re.search(r"ended +worker-1 +killed by SIGKILL; starting it again", said)
    assert up.process.returncode == 0


def test_state_survives_a_restart_and_a_second_up_on_the_same_home_is_refused(start: Callable[..., Up]) -> None:
    up = start()
    address = up.ready()
    spec = {"kind": "train", "name": "kept", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
    job = httpx.post(f"{address['api_url']}/api/v1/jobs", json=spec).raise_for_status().json()
    second = start()
    refused = second.process.communicate(timeout=PATIENCE_S)[0]
    assert second.process.returncode == 1
    assert f"process {up.process.pid}" in refused
    up.ask_to_stop()
    again = start("--workers", "0")
    address = until(lambda: again._alive() and running(again.home))
    found = httpx.get(f"{address['api_url']}/api/v1/jobs/{job['id']}").raise_for_status().json()
    assert found["name"] == "kept"


def test_a_taken_port_is_an_error_where_it_was_asked_for(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = start("--api-port", str(port))
        said = up.process.communicate(timeout=PATIENCE_S)[0]
    assert up.process.returncode == 1
    assert f"Port {port}" in said and "is taken" in said and "--api-port" in said
    assert "Traceback" not in said


def test_a_broker_of_others_that_does_not_answer_is_an_error_that_keeps_the_password_to_itself(
    start: Callable[..., Up],
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        up = start(DSD_BROKER_URL=f"redis://:secret@127.0.0.1:{closed.getsockname()[1]}/0")
        said = up.process.communicate(timeout=PATIENCE_S)[0]
    assert up.process.returncode == 1
    assert "DSD_BROKER_URL does not answer" in said and "secret" not in said and "Traceback" not in said
