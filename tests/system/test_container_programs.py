"""What containers run besides the services: migrations, and questions about their own health."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import make_url, update

from deploy import health, migrate
from dsd_core.errors import StorageError
from dsd_core.spec import parse_spec
from jobs import db, store
from jobs.tables import OutboxRow
from tests.servers import Valkey

SPEC = {"kind": "train", "name": "small", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}


@pytest.fixture
def url() -> Iterator[str]:
    """A server that knows one path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/here" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_is_healthy_when_it_answers_200(url: str) -> None:
    assert health.main(["url", f"{url}/here"]) == 0
    assert health.main(["url", f"{url}/gone"]) == 1
    assert health.main(["url", "http://127.0.0.1:1/"]) == 1


def test_a_controller_is_unhealthy_while_a_message_is_overdue(database_url: str) -> None:
    assert "does not answer" in str(health.why_relay_stands(database_url)), "there are no tables yet"
    db.migrate(database_url)
    engine = db.make_engine(database_url)
    with db.begin(engine) as s:
        job, _ = store.submit(s, parse_spec(SPEC), max_attempts=1)
    assert health.why_relay_stands(database_url) is None
    with db.begin(engine) as s:
        past = db.db_now(s) - timedelta(seconds=health.OVERDUE_S + 1)
        s.execute(update(OutboxRow).values(next_try_at=past))
    assert job.id in str(health.why_relay_stands(database_url))
    with db.begin(engine) as s:
        store.mark_sent(s, [row.id for row in store.due_outbox(s, 9)])
    assert health.why_relay_stands(database_url) is None
    engine.dispose()


def test_a_node_that_is_not_there_is_unhealthy(valkey: Valkey) -> None:
    assert "does not answer" in str(health.why_node_is_silent(valkey.url, "worker@nowhere"))
    valkey.kill()
    assert "cannot be asked" in str(health.why_node_is_silent(valkey.url, "worker@nowhere"))


def test_a_further_database_is_made_once(postgres_url: str) -> None:
    name = f'{make_url(postgres_url).database} "two"'
    assert [migrate.create_database(postgres_url, name) for _ in range(2)] == [True, False]
    address = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, dbname=name, autocommit=True) as connection:
        assert connection.info.dbname == name
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name.replace(chr(34), chr(34) * 2)}"'.encode())


def test_sqlite_has_no_further_database(sqlite_url: str) -> None:
    with pytest.raises(StorageError, match="PostgreSQL"):
        migrate.create_database(sqlite_url, "mlflow")
