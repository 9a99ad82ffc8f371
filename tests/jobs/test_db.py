from __future__ import annotations

import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from dsd_core.errors import StorageError
from jobs import db, store
from jobs.status import Reason
from jobs.tables import Base, JobRow
from tests.jobs.builders import a_queued_job, a_running_job, cancel, job


def test_migrations_make_exactly_the_tables_of_the_code(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_keep_the_data_and_can_be_taken_back(database_url: str, engine: Engine) -> None:
    job_id = a_queued_job(engine)
    db.migrate(database_url)
    assert job(engine, job_id).name == "a-student"
    db.downgrade(database_url)
    assert set(inspect(engine).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
    db.migrate(database_url)
    assert a_queued_job(engine)


def test_processes_that_migrate_at_once_wait_for_each_other(database_url: str) -> None:
    command = [sys.executable, "-c", f"from jobs import db; db.migrate({database_url!r})"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in processes] == [("", 0)] * 3


def test_a_database_of_a_newer_version_is_refused(database_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="9999"):
        db.migrate(database_url)


def test_the_database_itself_refuses_to_move_an_ended_job(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    cancel(engine, job_id)
    with pytest.raises(IntegrityError, match="an ended job stays as it is"), db.begin(engine) as s:
        s.execute(update(JobRow).values(status="running"))
    assert job(engine, job_id).status == "cancelled"


def test_the_database_itself_refuses_a_falling_fence(engine: Engine) -> None:
    claim = a_running_job(engine)
    with pytest.raises(IntegrityError, match="a fence never falls"), db.begin(engine) as s:
        s.execute(update(JobRow).values(fence=claim.fence - 1))
    assert job(engine, claim.job_id).fence == claim.fence


def test_the_database_itself_refuses_an_unknown_status(engine: Engine) -> None:
    a_queued_job(engine)
    with pytest.raises(IntegrityError, match="ck_jobs_status"), db.begin(engine) as s:
        s.execute(update(JobRow).values(status="paused"))


def test_an_exception_takes_the_whole_transaction_back(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    with pytest.raises(RuntimeError), db.begin(engine) as s:
        store.request_cancel(s, job_id)
        raise RuntimeError
    assert job(engine, job_id).status == "queued"


def test_times_come_back_in_utc(engine: Engine) -> None:
    row = job(engine, a_queued_job(engine))
    assert row.created_at.tzinfo is UTC
    assert abs((row.created_at - datetime.now(UTC)).total_seconds()) < 60


def test_a_time_without_zone_is_refused(engine: Engine) -> None:
    a_queued_job(engine)
    with pytest.raises(Exception, match="no time zone"), db.begin(engine) as s:
        s.execute(update(JobRow).values(started_at=datetime(2026, 1, 1)))


def test_a_number_that_json_lacks_is_refused_by_both_databases(engine: Engine) -> None:
    claim = a_running_job(engine)
    with pytest.raises(Exception, match="JSON compliant"), db.begin(engine) as s:
        store.finish(s, claim, Reason.FINISHED, result={"miou": float("nan")}, run_seconds=1.0)


@pytest.mark.parametrize("version, mode", [((3, 40, 1), "DELETE"), ((3, 51, 2), "DELETE"), ((3, 51, 3), "WAL")])
def test_the_write_ahead_log_is_used_only_where_it_is_safe(version: tuple[int, ...], mode: str) -> None:
    assert db.journal_mode(version).mode == mode
    assert ".".join(map(str, version)) in db.journal_mode(version).reason


def test_sqlite_waits_for_writers_checks_keys_and_survives_a_power_cut(sqlite_url: str) -> None:
    engine = db.make_engine(sqlite_url)
    with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]
    engine.dispose()
    assert values == [db.journal_mode().mode.lower(), 2, 1, 10_000]


def test_a_writer_takes_the_lock_of_sqlite_at_once_and_a_reader_takes_none(sqlite_url: str, tmp_path: Path) -> None:
    db.migrate(sqlite_url)
    engine = db.make_engine(sqlite_url)
    other = sqlite3.connect(tmp_path / "database" / "jobs.db", timeout=0, isolation_level=None)
    try:
        with db.begin(engine) as s:
            db.db_now(s)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        with db.reading(engine) as s:
            db.db_now(s)
            other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()
        engine.dispose()


def test_sqlite_in_memory_is_refused() -> None:
    with pytest.raises(StorageError, match="needs a file"):
        db.make_engine("sqlite://")


def test_a_statement_that_never_ends_is_stopped(postgres_url: str) -> None:
    engine = db.make_engine(postgres_url, statement_timeout_s=0.1)
    with pytest.raises(DBAPIError, match="statement timeout"), db.begin(engine) as s:
        s.execute(text("SELECT pg_sleep(60)"))
    engine.dispose()
