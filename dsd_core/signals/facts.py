"""What is known of a teacher, kept beside its signals: its score on a split, what a pass costs on a machine."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

FOLDER = "facts"
FORMAT = 1
"""Counts up whenever the same teacher would score otherwise."""
KEPT = 1000
"""Facts of some hundred bytes each; beyond these the ones that were written longest ago go."""
Fact = TypeVar("Fact", bound=BaseModel)


def fact_key(kind: type[BaseModel], depends: Any) -> str:
    """sha256 (hex) of what a fact is and all that it depends on."""
    text = json.dumps([FORMAT, kind.__name__, depends], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def known_fact(folder: Path, key: str, kind: type[Fact]) -> Fact | None:
    """None where it is not there, or is damaged."""
    try:
        kept = json.loads((folder / FOLDER / f"{key}.json").read_bytes())
        fact = kind.model_validate(kept["fact"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return fact if kept.get("checksum") == _checksum(key, fact) else None


def keep_fact(folder: Path, key: str, fact: BaseModel) -> None:
    """Where the disk takes it; else it will be found out again. Old ones make room."""
    path = folder / FOLDER / f"{key}.json"
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"fact": fact.model_dump(), "checksum": _checksum(key, fact)}))
        os.replace(partial, path)
        # Those that a killed process left half written grow old among them.
        by_age = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime_ns)
        for old in by_age[:-KEPT]:
            old.unlink()


def _checksum(key: str, fact: BaseModel) -> str:
    return hashlib.sha256(f"{key}{fact.model_dump_json()}".encode()).hexdigest()
