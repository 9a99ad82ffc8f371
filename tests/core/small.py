"""The smallest real job: ESPNet on generated scenes of 32x48 pixels, a second or two on one thread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dsd_core.data import open_dataset
from dsd_core.models import build
from dsd_core.network_spec import network_spec
from dsd_core.spec import JobSpec, parse_spec

TINY = {"name": "espnet", "options": {"p": 1, "q": 1}}
WITHOUT_BATCH_NORM = {
    "name": "fpn",
    "encoder": "tu-test_convnext",
    "options": {"decoder_dropout": 0.0, "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
}
CLASSES = open_dataset("streets", None, "val").classes


def save_teacher(folder: Path, *, classes: int = len(CLASSES), seed: int = 5) -> Path:
    """A teacher of random weights with its description beside it."""
    torch.manual_seed(seed)
    path = folder / "teacher.safetensors"
    save_file(build(network_spec(TINY), classes).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"network": TINY, "preprocess": "zero_one"}))
    return path


def small_spec(teacher: Path | None = None, **changes: Any) -> JobSpec:
    """A distill job with this teacher, or a train job; dotted names change one field (`train__epochs=2`)."""
    spec: dict[str, Any] = {
        "kind": "distill" if teacher else "train",
        "name": "small",
        "dataset": {"name": "streets", "size": [32, 48]},
        "student": {"network": TINY},
        "train": {
            "epochs": 1,
            "batch": 40,
            "threads": 1,
            "log_every": 1,
            "norms_every": 1,
            "learning_rate": 0.01,
            "warmup_steps": 0,
        },
        "evaluate": {"every_epochs": 1, "batch": 20, "pictures": 1},
    }
    if teacher:
        spec["teacher"] = {"weights": str(teacher), "floor": 0.0}
        spec["losses"] = "dsd_kd"
    for name, value in changes.items():
        part = spec
        *path, last = name.split("__")
        for step in path:
            part = part.setdefault(step, {})
        part[last] = value
    return parse_spec(spec)
