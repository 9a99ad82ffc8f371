"""`python -m deploy.up`: the whole service on one machine, until Ctrl-C.

Broker, API, MLflow, controller and workers are child processes of `deploy.supervisor`; all state is in one folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from deploy import home as home_folder
from deploy import services
from deploy.home import UpError
from deploy.services import Service
from deploy.supervisor import Say, Supervisor
from deploy.watchdog import Watchdog
from dsd_core.errors import DsdError
from jobs.db import migrate
from jobs.queue import broker_alive
from jobs.settings import Settings

COLOURS = {"starting": "dim", "ready": "green", "ended": "yellow", "stopped": "dim", "killed": "yellow"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run until asked to stop. 0 after a stop in good order, 1 after an error, 130 when asked twice."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        return _up(_arguments(argv), console)
    except DsdError as error:
        stderr = Console(stderr=True, highlight=False, soft_wrap=True)
        stderr.print(f"[bold red]Error[/] {escape(error.message)}")
        if error.hint:
            stderr.print(escape(error.hint), style="dim")
        return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dsd up", description="Run the whole service on this machine, until Ctrl-C.")
    parser.add_argument("--home", type=Path, help="folder that holds all state (default: DSD_HOME or ~/.dsd)")
    parser.add_argument("--api-port", type=_port, metavar="N", help="port of the API (default: 8000, or the next free)")
    parser.add_argument(
        "--mlflow-port", type=_port, metavar="N", help="MLflow's port (default: 5055, or the next free)"
    )
    parser.add_argument("--no-mlflow", action="store_true", help="do without MLflow; tracking waits until there is one")
    parser.add_argument("--workers", type=int, metavar="N", help="jobs that run at the same time (default: 1)")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return number


def _up(args: argparse.Namespace, console: Console) -> int:
    settings = _settings(args)
    home = settings.home_dir
    lock = home_folder.lock(home)
    try:
        settings = _with_ports(settings, args, console)
        env = _environment(settings)
        os.chdir(home)
        watchdog = Watchdog()
        supervisor = Supervisor(home, watchdog, env, _teller(console))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, supervisor.ask_to_stop)
        _check_broker(settings)
        migrate(settings.db_url)
        return _run(supervisor, settings, args, console)
    finally:
        home_folder.forget_address(home)
        os.close(lock)


def _settings(args: argparse.Namespace) -> Settings:
    given = {name: getattr(args, name) for name in ("home", "api_port", "mlflow_port", "workers")}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _with_ports(settings: Settings, args: argparse.Namespace, console: Console) -> Settings:
    """The settings with ports that are free; a default port that is taken is replaced and said so."""
    fixed = settings.model_fields_set
    api_port = home_folder.pick_port(settings.api_host, settings.api_port, flag="--api-port", fixed="api_port" in fixed)
    changes: dict[str, object] = {"api_port": api_port}
    if not args.no_mlflow and settings.mlflow_url is None:
        changes["mlflow_port"] = home_folder.pick_port(
            *("127.0.0.1", settings.mlflow_port),
            flag="--mlflow-port",
            fixed="mlflow_port" in fixed,
            taken=frozenset({api_port}),
        )
    for name, port in changes.items():
        if port != getattr(settings, name):
            console.print(f"Port {getattr(settings, name)} is taken; using {port} instead.", style="yellow")
    return settings.model_copy(update=changes)


def _environment(settings: Settings) -> dict[str, str]:
    """What every child is told, with absolute paths: children stand in the home, not where the user does."""
    env = dict(os.environ)
    env |= {
        "DSD_HOME": str(settings.home_dir),
        "DSD_STORAGE": str(settings.storage if settings.bucket else settings.storage_dir),
        "DSD_SIGNALS": str(settings.signals_dir),
        "DSD_API_PORT": str(settings.api_port),
        "DSD_BROKER_URL": settings.broker_url or services.broker_url(home_folder.socket_path(settings.home_dir)),
        "PYTHONUNBUFFERED": "1",
    }
    if settings.data_roots:
        env["DSD_DATA_ROOTS"] = ":".join(str(root.expanduser().absolute()) for root in settings.data_roots)
    return env


def _check_broker(settings: Settings) -> None:
    """The URL is not repeated: it may hold a password."""
    if settings.broker_url and not broker_alive(settings.broker_url):
        raise UpError(
            "The broker of DSD_BROKER_URL does not answer.", hint="Start it, or unset DSD_BROKER_URL to use our own."
        )


def _run(supervisor: Supervisor, settings: Settings, args: argparse.Namespace, console: Console) -> int:
    home, own_mlflow = settings.home_dir, not args.no_mlflow and settings.mlflow_url is None
    api_url = f"http://{_reachable(settings.api_host)}:{settings.api_port}"
    mlflow_url = f"http://127.0.0.1:{settings.mlflow_port}" if own_mlflow else settings.mlflow_url
    if mlflow_url:
        supervisor.env["DSD_MLFLOW_URL"] = mlflow_url
    console.print(f"[bold]dsd[/] with its state in [bold]{escape(str(home))}[/]")
    try:
        front, back = _services(settings, api_url, own_mlflow)
        supervisor.start(front)
        if not supervisor.stops_asked:
            _announce(console, settings, api_url, mlflow_url)
            supervisor.start(back)
        supervisor.run()
        console.print("Stopping. Running jobs save a checkpoint and go on after the next start; Ctrl-C again kills.")
    finally:
        supervisor.stop()
    console.print("Stopped." if supervisor.stops_asked < 2 else "Killed.")
    return 0 if supervisor.stops_asked < 2 else 130


def _services(settings: Settings, api_url: str, own_mlflow: bool) -> tuple[list[Service], list[Service]]:
    """Those that must run before the service is announced, and those that follow."""
    home = settings.home_dir
    front = [] if settings.broker_url else [services.broker(home, home_folder.socket_path(home))]
    back = [services.mlflow(home, settings)] if own_mlflow else []
    back += [services.controller(), *services.workers(home, settings)]
    return [*front, services.api(settings, api_url)], back


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)


def _announce(console: Console, settings: Settings, api_url: str, mlflow_url: str | None) -> None:
    home_folder.write_address(settings.home_dir, {"pid": os.getpid(), "api_url": api_url, "mlflow_url": mlflow_url})
    console.print(f"\n  API docs   [cyan]{api_url}/docs[/]")
    if mlflow_url:
        console.print(f"  MLflow     [cyan]{settings.mlflow_public_url or mlflow_url}[/]")
    if settings.api_host not in ("127.0.0.1", "::1", "localhost") and settings.api_key is None:
        console.print("  Anyone who reaches this address can submit jobs: set DSD_API_KEY.", style="yellow")
    console.print("  Submit     dsd submit FILE --watch")
    console.print("  Stop       Ctrl-C\n")


def _teller(console: Console) -> Say:
    started: set[str] = set()

    def say(service: Service, state: str, detail: str) -> None:
        first = state == "starting" and service.name not in started
        started.add(service.name)
        if not first:
            console.print(f"  [{COLOURS[state]}]{state:<9}[/] {service.name:<12} [dim]{escape(detail)}[/]")

    return say


if __name__ == "__main__":
    sys.exit(main())
