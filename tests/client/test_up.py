"""`python -m deploy.up` as a real process with real children: API, controller, worker and broker."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from client.home import running
from tests.client.supervised import PATIENCE_S, Up, until


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


@pytest.mark.slow
def test_ctrl_c_stops_everything_in_good_order_and_leaves_no_process(start: Callable[..., Up]) -> None:
    up = start()
    address = up.ready()
    assert address["pid"] == up.process.pid
    said = up.ask_to_stop()
    assert up.process.returncode == 0, said
    assert up.left_over() == []
    assert re.findall(r"stopped +(\S+)", said) == ["worker-1", "controller", "api", "broker"]
    assert running(up.home) is None


@pytest.mark.slow
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


@pytest.mark.slow
def test_state_survives_a_restart_and_a_second_up_on_the_same_home_is_refused(start: Callable[..., Up]) -> None:
    up = start("--workers", "0")
    address = up.ready(children=3)
    spec = {"kind": "train", "name": "kept", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
    job = httpx.post(f"{address['api_url']}/api/v1/jobs", json=spec).raise_for_status().json()
    second = start()
    refused = second.process.communicate(timeout=PATIENCE_S)[0]
    assert second.process.returncode == 1
    assert f"process {up.process.pid}" in refused
    up.ask_to_stop()
    again = start("--workers", "0")
    address = until(lambda: again.alive() and running(again.home))
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
