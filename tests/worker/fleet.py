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

QUICK: dict[str, float] = {"lease_s": 3, "heartbeat_s": 0.3, "tick_s": 0.3, "grace_s": 5, "redispatch_s": 2}
QUICK |= {"backoff_s": 0.0}
SCRIPTED_TASKS = "tests.worker.scripted_tasks"
REAL_TASKS = "worker.tasks"

Process = subprocess.Popen[bytes]


class Fleet:
    """Starts the processes of one service. `changes` are settings of that process alone, as `database_url=…`."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self.logs = logs
        self.processes: list[Process] = []
        self.under: list[str] = []  # a module with its arguments that runs those that are started from now on

    def worker(self, name: str, app: str = SCRIPTED_TASKS, fault: str = "", **changes: Any) -> Process:
        command = ["celery", "-A", app, "worker", "-P", "prefork", "-c", "1", "-n", name]
        return self.start(
            name, [*command, "--without-gossip", "--without-mingle", "-O", "fair", "-l", "info"], fault, **changes
        )

    def controller(self, name: str = "controller", fault: str = "", **changes: Any) -> Process:
        return self.start(name, ["worker.controller"], fault, **changes)

    def api(self, port: int, name: str = "api", fault: str = "", **changes: Any) -> Process:
        command = ["uvicorn", "--factory", "api.main:create_app", "--host", "127.0.0.1", "--port", str(port)]
        return self.start(name, command, fault, **changes)

    def start(self, name: str, arguments: list[str], fault: str = "", **changes: Any) -> Process:
        """Start `python -m …`; `fault` is what DSD_FAULT says to it."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DSD_")}
        environment |= variables(self.settings.model_copy(update=changes)) | ({"DSD_FAULT": fault} if fault else {})
        process = spawn(
            [sys.executable, "-m", *self.under, *arguments], self.logs / f"{name}.log", signal.SIGKILL, env=environment
        )
        self.processes.append(process)
        return process

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
    given = settings.model_dump(exclude_unset=True, exclude_none=True)
    return {f"DSD_{name.upper()}": str(value) for name, value in given.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
