"""What is trained in most parts: CamVid at 240x320 in whole-image views, batches of 8, the preset `dsd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pieces import STUDENT

WORDS = (
    "CamVid at 240x320, views of the whole image's size, batches of 8; teacher FPN EfficientNet-Lite0, student FPN"
    " LCNet-050 of 0.35 M parameters; preset dsd; one thread"
)
SIZE = (240, 320)
BATCH = 8


def distilling(data: Path, teacher: Path, signals: str, **changes: Any) -> dict[str, Any]:
    """A job file with the teacher; `signals` says how it is heard."""
    return plain(data) | {
        "kind": "distill",
        "teacher": {"weights": str(teacher)},
        "losses": "dsd",
        "signals": signals,
        **changes,
    }


def plain(data: Path, **changes: Any) -> dict[str, Any]:
    """The same student without a teacher."""
    return {
        "kind": "train",
        "name": "bench",
        "dataset": {"name": "camvid", "root": str(data), "size": list(SIZE)},
        "student": {"network": STUDENT},
        "losses": "plain",
        "train": training(),
        "evaluate": {"every_epochs": 1000, "batch": 8, "pictures": 0},
        **changes,
    }


def training(**changes: Any) -> dict[str, Any]:
    """Steps without end, and a checkpoint at the end alone."""
    return {"epochs": 1000, "batch": BATCH, "threads": 1, "checkpoint_every_s": 1e6, **changes}
