"""The database: engines, transactions, its clock, and the migrations.

SQLite serves one machine, PostgreSQL many. A transaction that writes takes SQLite's write lock at its beginning: a lock
asked for later fails at once instead of waiting. Errors of the connection are the caller's: a whole transaction may be
repeated.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, literal_column, make_url, select
from sqlalchemy.orm import Session

from dsd_core.errors import StorageError
from jobs.tables import UtcDateTime

BUSY_TIMEOUT_S = 10.0
POOLED = 5  # connections that stay open
MIGRATIONS = Path(__file__).parent / "migrations"
ASK_EVERY_S = 0.004
WAL_SAFE_SINCE = (3, 51, 3)


class JournalMode(NamedTuple):
    """SQLite's way to survive a crash, and why it is this one."""

    mode: str
    reason: str


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> JournalMode:
    """The journal mode for this version of SQLite."""
    ours = ".".join(map(str, version))
    fixed = ".".join(map(str, WAL_SAFE_SINCE))
    if version >= WAL_SAFE_SINCE:
        return JournalMode("WAL", f"SQLite {ours}: readers and the writer do not wait for each other.")
    return JournalMode("DELETE", f"SQLite {ours}: before {fixed} a reset of the WAL can corrupt the file.")


def make_engine(
    url: str, *, connections: int = 15, statement_timeout_s: float = 10.0, pool_timeout_s: float = 30.0
) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://…`; creates the folder of the file.

    On PostgreSQL there are `connections` at most; who finds none free waits for `pool_timeout_s`, and a statement ends
    with an error after `statement_timeout_s`. On SQLite writers wait for each other for BUSY_TIMEOUT_S.
    """
    to_json = partial(json.dumps, allow_nan=False)  # PostgreSQL takes no NaN in JSON; nor does SQLite here
    if make_url(url).get_backend_name() == "sqlite":
        return _sqlite(url, to_json)
    settings = {
        "statement_timeout": int(statement_timeout_s * 1000),
        "lock_timeout": int(statement_timeout_s * 1000),
        "idle_in_transaction_session_timeout": 60_000,
    }
    return create_engine(
        url,
        json_serializer=to_json,
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_timeout=pool_timeout_s,
        max_overflow=connections - POOLED,
        pool_size=POOLED,
        connect_args={"connect_timeout": 5, "options": " ".join(f"-c {k}={v}" for k, v in settings.items())},
    )


@contextmanager
def begin(engine: Engine) -> Iterator[Session]:
    """One short transaction that writes: commits at the end, rolls back on an exception. Wait for nothing inside.

    Rows stay readable after the commit.
    """
    with Session(engine.execution_options(dsd_write=True), expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """One short transaction that only reads; on SQLite it waits for no writer longer than a commit takes."""
    with Session(engine.execution_options(dsd_write=False), expire_on_commit=False) as session:
        yield session


def db_now(session: Session) -> datetime:
    """The database's clock, in UTC. Leases are compared by this clock alone; those of workers may be wrong by years."""
    if session.get_bind().dialect.name == "sqlite":
        clock = func.strftime("%Y-%m-%d %H:%M:%f000", "now", type_=UtcDateTime)
    else:
        clock = func.clock_timestamp(type_=UtcDateTime)
    return session.execute(select(clock)).scalar_one()


def migrate(url: str, revision: str = "head") -> None:
    """Bring the tables to the newest version; processes that do so at once wait for each other.

    Raises StorageError where the database is of a newer version than this code.
    """
    _run_migration(url, partial(command.upgrade, revision=revision))


def downgrade(url: str, revision: str = "base") -> None:
    """Bring the tables back to an older version. `base` removes them with all they hold."""
    _run_migration(url, partial(command.downgrade, revision=revision))


def versions(engine: Engine) -> tuple[str | None, str | None]:
    """The version the tables have (None: there are none), and the newest this code knows."""
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found, ScriptDirectory(str(MIGRATIONS)).get_current_head()


def _run_migration(url: str, run: Any) -> None:
    engine = make_engine(url, statement_timeout_s=600)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.execution_options(dsd_write=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(literal_column("7251190431"))))
            config.attributes["connection"] = connection
            run(config)
    except CommandError as error:
        raise StorageError(f"The database cannot be migrated: {error}", hint="Install the newer version.") from error
    finally:
        engine.dispose()


def _sqlite(url: str, to_json: Any) -> Engine:
    file = make_url(url).database
    if not file or file == ":memory:":
        raise StorageError("SQLite needs a file.", hint="Write sqlite:////absolute/path/jobs.db")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, json_serializer=to_json, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: `_on_sqlite_begin` does
    for pragma in (
        f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
        f"journal_mode = {journal_mode().mode}",
        "synchronous = FULL",
        "foreign_keys = ON",
        "mmap_size = 0",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _on_sqlite_begin(connection: Connection) -> None:
    if connection.get_execution_options().get("dsd_write"):
        _wait_for_the_lock(connection)
    else:
        connection.exec_driver_sql("BEGIN")


def _wait_for_the_lock(connection: Connection) -> None:
    """Ask for the write lock at the same short intervals for BUSY_TIMEOUT_S.

    SQLite itself asks ever more rarely, up to once in 0.1 s, so that among many writers those that came last win and
    one that has waited long may wait until it is refused.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    driver.execute("PRAGMA busy_timeout = 0").close()
    try:
        while time.monotonic() < deadline and not _has_begun(driver):
            time.sleep(random.uniform(0.5, 1.5) * ASK_EVERY_S)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}").close()
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the error is SQLAlchemy's


def _has_begun(driver: Any) -> bool:
    try:
        driver.execute("BEGIN IMMEDIATE").close()
    except sqlite3.OperationalError:
        return False
    return True
