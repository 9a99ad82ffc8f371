"""Checkpoints of four numbers, all of them the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsd_core import checkpoint


def write(folder: Path, step: int, **options: Any) -> checkpoint.Saved:
    return checkpoint.save(folder, step, {"w": torch.full((4,), float(step))}, {"step": step}, **options)


def newest_step(folder: Path, note: Callable[[str], None] = pytest.fail) -> int | None:
    """The step that is resumed from, by state and tensors both; None where there is no checkpoint."""
    found = checkpoint.load_newest(folder, note)
    if found is None:
        return None
    tensors, state = found
    assert tensors["w"].tolist() == [state["step"]] * 4, "tensors of one checkpoint with the state of another"
    step: int = state["step"]
    return step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
