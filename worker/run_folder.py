"""What the worker reads and writes in a run folder: the spec before the start, events and log after."""

from __future__ import annotations

import json
import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_core.errors import StorageError, WeightsError
from dsd_core.events import Note, parse, read_lines

log = logging.getLogger(__name__)

Numbered = tuple[dict[str, Any], int]  # an event, and the offset after its line


def prepare(folder: Path, spec: dict[str, Any], networks: dict[str, Path]) -> list[str]:
    """Write spec.json and return the arguments of the training process. `networks` are weights, of teacher and student.

    Raises WeightsError for weights that are gone, StorageError for the disk.
    """
    for part, path in networks.items():
        if not path.exists():
            by = "job" if spec[part].get("job") else "model"
            message = f"The files of {by} {spec[part][by]!r} are gone: there is no {path}."
            hint = "Choose another version." if by == "model" else "Name another job, or run that one again."
            raise WeightsError(message, field=f"/{part}/{by}", hint=hint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "spec.json", json.dumps(spec, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"The run folder {folder} cannot be written: {error.strerror}.") from error
    options = [word for part, path in networks.items() for word in (f"--{part}", str(path))]
    return [str(folder / "spec.json"), "--out", str(folder), *options]


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

    @property
    def end(self) -> int:
        """The offset after the last complete line of the whole file."""
        return max((after for _, after in read_lines(self.path)), default=0)

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
