"""The key of a submission that is not answered yet: the same command goes on with it, and makes no job twice."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.errors import ApiError
from client.home import home_dir

KEPT_S = 24 * 3600.0  # a command that is repeated later than this means new jobs


@contextmanager
def submission_key(url: str, jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """An idempotency key for these jobs at this service.

    It is kept in a file until all of them are queued or one is refused, also when this process is killed. Where no file
    can be written it is new each time.
    """
    content = json.dumps([url, list(jobs)], sort_keys=True, default=str)
    path = home_dir() / "submissions" / hashlib.sha256(content.encode()).hexdigest()
    try:
        key = _kept(path)
    except OSError:
        key = uuid.uuid4().hex
    try:
        yield key
    except ApiError as error:
        if error.refused:
            _forget(path)
        raise
    _forget(path)


def _kept(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and time.time() - path.stat().st_mtime < KEPT_S:
        return path.read_text()
    key = uuid.uuid4().hex
    path.write_text(key)
    return key


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
