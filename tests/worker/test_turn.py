"""One of two controllers has the turn, however the other ends."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

from jobs import db
from tests.worker.service import until
from worker.turn import Turn


def test_a_turn_is_one_processs_at_a_time_until_it_is_given_up(engine: Engine, tmp_path: Path) -> None:
    first, second = (Turn(engine, "tracking", tmp_path) for _ in "12")
    assert first.take() and first.take() and not second.take()
    first.give_up()
    assert second.take() and not first.take()
    second.give_up()


def test_a_turn_is_lost_with_the_session_that_holds_it(postgres_url: str, tmp_path: Path) -> None:
    engine = db.make_engine(postgres_url)
    first, second = (Turn(engine, "tracking", tmp_path) for _ in "12")
    assert first.take()
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
    until(second.take)
    assert not first.take()
    second.give_up()
    engine.dispose()
