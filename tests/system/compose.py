"""docker-compose.yml as data, and its services as plain processes of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from dsd_core.parent_death import die_with_parent
from tests.conftest import ROOT

FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = FILE["services"]
OURS = ("migrate", "mlflow", "api", "controller", "worker", "worker-cpu")
PORTS = ("5432", "6379", "5000", "8000")  # on which services listen
VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


def interpolate(text: str, variables: dict[str, str]) -> str:
    """What the container engine makes of a text: `${NAME:-default}`, `${NAME:?why}`, and `$$` for a dollar."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        assert kind != "?", f"{name}: {rest}"
        return rest or ""

    return VARIABLE.sub(value, text).replace("$$", "$")


def seconds(duration: str) -> float:
    assert duration.endswith("s"), duration
    return float(duration.removesuffix("s"))


@dataclass
class Here:
    """Translates what the file says of containers to this machine: hosts, ports and folders."""

    folder: Path
    variables: dict[str, str]

    def __post_init__(self) -> None:
        self.ports = {port: _free_port() for port in PORTS}

    def text(self, service: str, text: str) -> str:
        text = interpolate(text, self.variables)
        for volume in SERVICES[service].get("volumes", ()):
            text = re.sub(rf"{volume['target']}\b", str(self.target(volume)), text)
        hosts = "|".join(map(re.escape, SERVICES))
        text = re.sub(rf"\b({hosts})(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"(?<![\d.])(\d{4})(?!\d)", lambda m: self.ports.get(m[1], m[1]), text)

    def argv(self, service: str) -> list[str]:
        return [
            SERVICES[service]["command"][0],
            *(self.text(service, word) for word in SERVICES[service]["command"][1:]),
        ]

    def health_argv(self, service: str) -> list[str]:
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        words = [self.text(service, word) for word in words]
        return words if kind == "CMD" else ["/bin/sh", "-c", *words]

    def environment(self, service: str) -> dict[str, str]:
        """What a container of an image has, and what the file adds; nothing of this process."""
        given = SERVICES[service].get("environment", {}).items()
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "HOSTNAME": socket.gethostname(),
            "OMP_NUM_THREADS": "1",
            "COMPOSE_TEST": str(self.folder),
        } | {name: self.text(service, value) for name, value in given if value is not None}

    def target(self, volume: dict[str, Any]) -> Path:
        path = self.folder / Path(volume["target"]).name
        path.mkdir(exist_ok=True)
        return path

    def processes(self) -> list[psutil.Process]:
        """All that live and were started with one of these environments."""
        return [process for process in psutil.process_iter() if _mark(process) == str(self.folder)]


class Container:
    """A service as a process, in an empty folder as in its container."""

    def __init__(self, here: Here, service: str, *, program: str | None = None) -> None:
        """`program` takes the place of the command's first word where the image's own is not on this machine."""
        self.here, self.service = here, service
        program, *words = here.argv(service) if program is None else [program, *here.argv(service)[1:]]
        self.log = here.folder / f"{service}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=here.environment(service),
                cwd=here.folder / "home",
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def is_healthy(self) -> bool:
        """Runs the health check of the file. Fails where the process has ended."""
        assert self.process.poll() is None, self.log.read_text()
        check = subprocess.run(
            self.here.health_argv(self.service),
            capture_output=True,
            env=self.here.environment(self.service),
            cwd=self.here.folder / "home",
            timeout=60,
        )
        return check.returncode == 0

    def stop(self) -> int:
        """SIGTERM to the first process, as `init: true` passes it on, and its exit code within the time it has."""
        self.process.terminate()
        return self.process.wait(seconds(SERVICES[self.service]["stop_grace_period"]))

    def kill(self) -> None:
        """What the kernel does to the rest of a container whose first process has ended."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)


def _mark(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get("COMPOSE_TEST")
    except (psutil.Error, OSError):
        return None


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
