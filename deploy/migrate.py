"""`python -m deploy.migrate [--create NAME]`: brings the tables of DSD_DATABASE_URL to the newest version, then ends.

`--create` makes another empty database on the same PostgreSQL server where there is none of that name: MLflow keeps its
own tables there. Safe to repeat, and for two at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sqlalchemy import Connection, text

from dsd_core.errors import DsdError, StorageError
from jobs import db
from jobs.settings import settings

LOCK = 7251190432


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 with a message on stderr."""
    parser = argparse.ArgumentParser("python -m deploy.migrate", description=__doc__.splitlines()[0])
    parser.add_argument("--create", metavar="NAME", help="a further database to create on the same server")
    name = parser.parse_args(argv).create
    try:
        db.migrate(settings().db_url)
        if name is not None:
            create_database(settings().db_url, name)
    except DsdError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def create_database(url: str, name: str) -> bool:
    """Create the database `name` beside that of the PostgreSQL `url`; False where it is there. Raises StorageError."""
    engine = db.make_engine(url)
    try:
        if engine.dialect.name != "postgresql":
            raise StorageError("Only PostgreSQL holds further databases.", hint="Leave --create out.")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return _create(connection, engine.dialect.identifier_preparer.quote_identifier(name), name)
    finally:
        engine.dispose()


def _create(connection: Connection, quoted: str, name: str) -> bool:
    """The lock is the connection's own, so that it is gone with it."""
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
    if connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}):
        return False
    connection.execute(text(f"CREATE DATABASE {quoted}"))
    return True


if __name__ == "__main__":
    sys.exit(main())
