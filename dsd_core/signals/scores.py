"""Scores of teachers, kept beside their signals: of one file on one split there is only one."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsd_core.events import Score

FOLDER = "scores"
FORMAT = 1
"""Counts up whenever the same teacher would score otherwise."""
OPTIONS = ("mode", "window", "stride", "scales", "flip", "boundary")
"""Of an evaluation, those that a score depends on."""


def score_key(teacher: dict[str, Any], split_fingerprint: str, options: dict[str, Any], numerics: str) -> str:
    """sha256 (hex) of all that a score depends on."""
    looked = {name: options[name] for name in OPTIONS}
    depends = [FORMAT, teacher, split_fingerprint, looked, numerics]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def known_score(folder: Path, key: str) -> Score | None:
    """None where it is not there, or is damaged."""
    try:
        kept = json.loads((folder / FOLDER / f"{key}.json").read_bytes())
        score = Score.model_validate(kept["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if kept.get("checksum") == _checksum(key, score) else None


def keep_score(folder: Path, key: str, score: Score) -> None:
    """Where the disk takes it; else it will be computed again."""
    path = folder / FOLDER / f"{key}.json"
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"score": score.model_dump(), "checksum": _checksum(key, score)}))
        os.replace(partial, path)


def _checksum(key: str, score: Score) -> str:
    return hashlib.sha256(f"{key}{score.model_dump_json()}".encode()).hexdigest()
