"""What the worker reads and writes in a run folder: the spec before the start, events and log after."""

from __future__ import annotations

import json
import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from dsd_core.errors import StorageError
from dsd_core.events import Note, parse, read_lines
from dsd_core.spec import parse_spec
from jobs import store
from jobs.settings import Settings
from worker.references import weights_by_reference

log = logging.getLogger(__name__)

Numbered = tuple[dict[str, Any], int]  # an event, and the offset after its line


def prepare(session: Session, settings: Settings, claim: store.Claim) -> list[str]:
    """Write spec.json and return the arguments of the training process.

    Raises SpecError for a spec of another version, WeightsError for a teacher or student that is not there,
    StorageError for the disk.
    """
    spec = parse_spec(claim.spec)
    folder = settings.run_dir(claim.job_id)
    files = weights_by_reference(session, settings, spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "spec.json", json.dumps(claim.spec, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"The run folder {folder} cannot be written: {error.strerror}.") from error
    return [str(folder / "spec.json"), "--out", str(folder), *files]


def log_tail(path: Path, lines: int = 40, limit_bytes: int = 64 * 1024) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - limit_bytes))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Tail:
    """Follows events.jsonl from a saved offset.

    `last` is the finished or failed event of this attempt: a line left by an earlier one is copied, but says nothing
    about this one.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self.offset = offset
        self.last: dict[str, Any] | None = None
        self._fresh_from = 0

    def skip_to_fresh(self) -> None:
        """Lines from here on are this attempt's."""
        self._fresh_from = max((after for _, after in read_lines(self.path, self.offset)), default=self.offset)

    def read(self, limit: int) -> list[Numbered]:
        """Up to `limit` complete lines that have not been copied yet."""
        batch = [(_event(line, after), after) for line, after in islice(read_lines(self.path, self.offset), limit)]
        for event, after in batch:
            if after > self._fresh_from and event["type"] in ("finished", "failed"):
                self.last = event
        return batch

    def copied(self, batch: list[Numbered]) -> None:
        self.offset = batch[-1][1]


def _write(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new one."""
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _event(line: bytes, after: int) -> dict[str, Any]:
    """The event as plain JSON, without NaN; a line that is none becomes a note, for it must not stop the job."""
    try:
        event = parse(line)
    except ValidationError:
        log.warning("events.unreadable offset=%s", after)
        event = Note(level="warning", message=f"events.jsonl has a line before byte {after} that is not an event.")
    plain: dict[str, Any] = json.loads(event.model_dump_json())
    return plain
