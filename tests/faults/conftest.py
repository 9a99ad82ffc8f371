"""One whole service for each case, on servers of the session, and the oracles after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.golden import Golden, train
from tests.faults.site import Site, a_site
from tests.servers import Postgres, ShortFolder, Valkey, fresh_database


@pytest.fixture(scope="session")
def breakable_postgres() -> Iterator[Postgres]:
    """A server that cases stop and start; they leave it running."""
    with ShortFolder() as folder:
        server = Postgres(folder)
        yield server
        server.end()


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return train(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: Valkey, breakable_postgres: Postgres
) -> Iterator[Site]:
    """A service on PostgreSQL without processes yet; the case starts those it needs."""
    with fresh_database(breakable_postgres.url) as url, checked(request, tmp_path, valkey, url) as site:
        site.postgres = breakable_postgres
        yield site


@pytest.fixture
def sqlite_site(request: pytest.FixtureRequest, tmp_path: Path, valkey: Valkey, sqlite_url: str) -> Iterator[Site]:
    """The same on SQLite."""
    with checked(request, tmp_path, valkey, sqlite_url) as site:
        yield site


@contextmanager
def checked(request: pytest.FixtureRequest, folder: Path, valkey: Valkey, database_url: str) -> Iterator[Site]:
    """The oracles speak after a case that has not failed already."""
    failed_before = request.session.testsfailed
    with a_site(folder, valkey, database_url, lambda: request.getfixturevalue("golden")) as site:
        yield site
        if request.session.testsfailed == failed_before:
            site.check()
