"""A store on SQLite alone, for tests whose subject is the same on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from jobs import db


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    db.migrate(sqlite_url)
    engine = db.make_engine(sqlite_url)
    yield engine
    engine.dispose()
