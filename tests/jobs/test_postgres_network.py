"""PostgreSQL as several machines reach it: over TCP, with a password. (The server of the tests has no TLS.)"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError

from jobs import db
from tests.jobs.builders import a_queued_job, claim_next
from tests.servers import ShortFolder, end, start_postgres
from tests.worker.fleet import free_port


@pytest.fixture(scope="module")
def over_tcp() -> Iterator[URL]:
    """A server that asks for a password on TCP, as the URL of a role that owns a database."""
    port = free_port()
    with ShortFolder() as folder:
        (folder / "hba").write_text("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        options = ("-h", "127.0.0.1", "-c", f"hba_file={folder / 'hba'}")
        process, url = start_postgres(folder, *options, port=port)
        admin = create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE ROLE dsd LOGIN PASSWORD 'pass%word'"))
            connection.execute(text("CREATE DATABASE dsd OWNER dsd"))
        admin.dispose()
        yield URL.create("postgresql+psycopg", "dsd", "pass%word", "127.0.0.1", port, "dsd")
        end(process, signal.SIGQUIT)


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_jobs_are_queued_and_claimed_over_tcp_with_a_password(over_tcp: URL) -> None:
    url = text_of(over_tcp)
    assert "pass%25word" in url
    db.migrate(url)
    engine = db.make_engine(url)
    job_id = a_queued_job(engine)
    claim = claim_next(engine)
    engine.dispose()
    assert claim is not None and claim.job_id == job_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"query": {"sslmode": "require"}}, "does not support SSL"),
    ],
)
def test_a_wrong_password_and_a_missing_tls_are_refused_as_such(
    over_tcp: URL, change: dict[str, object], says: str
) -> None:
    engine = db.make_engine(text_of(over_tcp.set(**change)))  # type: ignore[arg-type]
    with pytest.raises(OperationalError, match=says):
        engine.connect()
    engine.dispose()
