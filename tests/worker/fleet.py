"""Worker, controller and API processes as they run in production, with quick timers; all end with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from celery import Celery

from jobs import queue
from jobs.settings import Settings
from tests.servers import spawn

QUICK: dict[str, float] = {
    "lease_s": 3,
    "heartbeat_s": 0.3,
    "tick_s": 0.3,
    "grace_s": 5,
    "redispatch_s": 0.5,
    "backoff_s": 0.0,
}
SCRIPTED_TASKS = "tests.worker.scripted_tasks"
REAL_TASKS = "worker.tasks"

Process = subprocess.Popen[bytes]


class Fleet:
    """Starts the processes of one service. Options of `start` that it does not name are settings of that process."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self.logs = logs
        self.processes: list[Process] = []

    def worker(self, name: str, app: str = SCRIPTED_TASKS, **options: Any) -> Process:
        command = ["celery", "-A", app, "worker", "-P", "prefork", "-c", "1", "-n", name]
        return self.start(
            name, [*command, "--without-gossip", "--without-mingle", "-O", "fair", "-l", "info"], **options
        )

    def controller(self, name: str = "controller", **options: Any) -> Process:
        return self.start(name, ["worker.controller"], **options)

    def api(self, port: int, name: str = "api", **options: Any) -> Process:
        command = ["uvicorn", "--factory", "api.main:create_app", "--host", "127.0.0.1", "--port", str(port)]
        return self.start(name, command, **options)

    def start(
        self, name: str, arguments: list[str], *, fault: str = "", clock_s: float = 0.0, **changes: Any
    ) -> Process:
        """Start `python -m …`; `fault` is what DSD_FAULT says to it, `clock_s` by how much its clock is fast."""
        if clock_s:
            arguments = ["tests.faults.wrong_clock", str(clock_s), *arguments]
        environment = self.environment(**changes) | ({"DSD_FAULT": fault} if fault else {})
        process = spawn([sys.executable, "-m", *arguments], self.logs / f"{name}.log", signal.SIGKILL, env=environment)
        self.processes.append(process)
        return process

    def environment(self, **changes: Any) -> dict[str, str]:
        """What a process of this service finds in its environment; `changes` are settings."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("DSD_")}
        return others | variables(self.settings.model_copy(update=changes))

    @property
    def app(self) -> Celery:
        """What speaks to the broker as the service does."""
        assert self.settings.broker_url is not None
        return queue.make_app(self.settings.broker_url)

    def queues_of(self, name: str) -> list[str] | None:
        """The queues a worker takes messages from; None while it does not answer."""
        answer = self.app.control.inspect([f"celery@{name}"], timeout=0.5).active_queues()
        return answer and [queue["name"] for queue in answer[f"celery@{name}"]]

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(60)


def variables(settings: Settings) -> dict[str, str]:
    """The environment that gives a process these settings."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {f"DSD_{name.upper()}": str(value) for name, value in given.items() if value is not None}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
