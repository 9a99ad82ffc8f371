"""A turn that one process has at a time, however it ends: what two controllers must not do at once.

On PostgreSQL it is an advisory lock of a session, which the server lets go with the connection; on SQLite, where all
processes are on one machine, a lock on a file, which the kernel lets go with the process. Neither holds a transaction
open during slow calls.
"""

from __future__ import annotations

import fcntl
import zlib
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError


class Turn:
    """The turn of this name among all processes on the same database."""

    def __init__(self, engine: Engine, name: str, folder: Path) -> None:
        self._engine = engine
        self._number = zlib.crc32(name.encode())
        self._path = folder / f"{name}.lock"
        self._file: IO[str] | None = None
        self._session: Connection | None = None

    def take(self) -> bool:
        """Whether it is ours, now or already."""
        return self._take_file() if self._engine.dialect.name == "sqlite" else self._take_session()

    def give_up(self) -> None:
        """Let another process have it."""
        if self._file is not None:
            self._file.close()
        if self._session is not None:
            self._session.invalidate()
            self._session.close()
        self._file = self._session = None

    def _take_file(self) -> bool:
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def _take_session(self) -> bool:
        """The lock is taken once; after that the session is only asked whether it is still there."""
        if self._session is not None:
            try:
                self._session.execute(text("SELECT 1"))
                return True
            except DBAPIError:
                self.give_up()
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if session.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": self._number}).scalar_one():
            self._session = session
            return True
        session.close()
        return False
