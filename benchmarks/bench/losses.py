"""What each loss costs beside a step of the field's size: `benchmarks/losses.py`, whose report it writes too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import losses


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    report = losses.measure_all()
    losses.keep(report)
    setting = f"crops of {losses.CROP}x{losses.CROP} at stride 8, {losses.CLASSES} classes; step of pspnet_r18"
    return {"setting": setting, "figures": {}, "losses": report["losses"]}
