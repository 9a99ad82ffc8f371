"""The tables go from version to version and back with data in them, also while jobs run under the version before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, select, text
from sqlalchemy.exc import IntegrityError

from jobs import db, store
from tests.jobs.builders import a_queued_job, claim_next, job
from tests.jobs.older_version import OlderVersion

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def older(database_url: str) -> Iterator[OlderVersion]:
    """A database of version 0001."""
    db.migrate(database_url, "0001")
    engine = db.make_engine(database_url)
    yield OlderVersion(engine)
    engine.dispose()


def lived_in(older: OlderVersion) -> None:
    """Jobs in every state, with history, labels, messages, a key, a model and an alias."""
    for status in ("queued", "running", "cancelling", "succeeded", "failed", "cancelled"):
        older.submit(f"job{status}", {"owner": "me", "stage": status}, status=status)
    older.submit("jobwaiting")
    with older.engine.begin() as connection:
        for statement in (
            "INSERT INTO idempotency VALUES ('the-key', 'f', 'jobqueued', CURRENT_TIMESTAMP)",
            "INSERT INTO models VALUES ('older', 1, 'jobsucceeded', '[]', '{}', 0.5, CURRENT_TIMESTAMP)",
            "INSERT INTO model_aliases VALUES ('older', 'best', 1)",
        ):
            connection.execute(text(statement))


def rows(engine: Engine) -> Rows:
    """Everything in every table."""
    found: Rows = {}
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            if table.name != "alembic_version":
                listed = connection.execute(select(table).order_by(*table.primary_key.columns))
                found[table.name] = [dict(row._mapping) for row in listed]
    return found


def kept(before: Rows, after: Rows) -> bool:
    """Whether each row of before is there with all its values."""
    return all(
        [{name: row[name] for name in old} for old, row in zip(before[table], after[table], strict=True)]
        == before[table]
        for table in before
    )


def guarded(engine: Engine) -> bool:
    """Whether the database itself still refuses to move an ended job."""
    with pytest.raises(IntegrityError, match="an ended job stays as it is"), engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET status = 'queued' WHERE id = 'jobsucceeded'"))
    return True


def test_data_are_kept_on_the_way_up_and_down_and_up_again(older: OlderVersion, database_url: str) -> None:
    engine = older.engine
    lived_in(older)
    before = rows(engine)
    for _ in range(2):
        db.migrate(database_url)
        assert kept(before, rows(engine)) and guarded(engine)
        labels = rows(engine)["job_labels"]
        assert len(labels) == 12 and {"job_id": "jobfailed", "key": "stage", "value": "failed"} in labels
        db.downgrade(database_url, "0001")
        assert rows(engine) == before and guarded(engine)
    db.downgrade(database_url)
    assert rows(engine).get("jobs") is None


def test_jobs_that_were_queued_before_can_be_claimed_and_found_after(older: OlderVersion, database_url: str) -> None:
    lived_in(older)
    db.migrate(database_url)
    assert [claim.job_id for _ in range(2) if (claim := claim_next(older.engine))] == ["jobqueued", "jobwaiting"]
    assert claim_next(older.engine) is None
    with db.reading(older.engine) as s:
        assert [row.id for row in store.list_page(s, limit=9, label=("stage", "failed"))[0]] == ["jobfailed"]


def test_after_a_way_back_jobs_that_waited_for_something_can_be_claimed(older: OlderVersion, database_url: str) -> None:
    db.migrate(database_url)
    first = a_queued_job(older.engine)
    paused, needing = a_queued_job(older.engine), a_queued_job(older.engine, needs=[first])
    with db.begin(older.engine) as s:
        store.request_pause(s, paused)
    db.downgrade(database_url, "0001")
    assert [older.claim(job_id) for job_id in (first, paused, needing)] == [1, 1, 1]


@pytest.mark.fault("F24")
def test_workers_of_the_version_before_go_on_while_the_tables_change_and_after(
    older: OlderVersion, database_url: str
) -> None:
    """They claim, beat, give back and finish all the while; whatever they leave behind is claimed by the new ones."""
    lived_in(older)
    migrated = Event()

    def work(number: int) -> int:
        ended = 0
        while not migrated.is_set() or ended < 5:
            job_id = f"worker{number}x{ended}"
            older.submit(job_id)
            for end in (older.release, older.finish):
                fence = older.claim(job_id)
                assert fence is not None and older.beat(job_id, fence) == "running" and end(job_id, fence)
            ended += 1
        return ended

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, number) for number in range(3)]
        try:
            db.migrate(database_url)
        finally:
            migrated.set()
    assert all(worker.result() >= 5 for worker in workers)
    older.submit("jobafter")
    fence = older.claim("jobwaiting")
    assert fence is not None and older.release("jobwaiting", fence)
    with db.begin(older.engine) as s:
        store.restand(s)
    claims = [claim_next(older.engine) for _ in range(4)]
    assert [claim and claim.job_id for claim in claims] == ["jobafter", "jobqueued", "jobwaiting", None]
    assert job(older.engine, "worker0x0").status == "succeeded"
