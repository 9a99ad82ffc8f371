"""Comparisons on CamVid that take hours: a piece is one training run in a process of its own, whose figures are kept.

All comparisons have the same data, teacher, student and crops. A finished piece lies as a JSON file and is not run
again; an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared"
SEEDS = (0, 1, 2)
CE = {"loss": "ce", "class_weights": "log"}
STUDENT = {
    "name": "fpn",
    "encoder": "tu-lcnet_050",
    "options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
}
SETTING = (
    "student FPN LCNet-050 of 0.35 M parameters from random weights; images of 240x320, crops of 128x192, batch 4,"
    " {epochs} epochs, one CPU thread, {seeds} seeds"
)

Losses = list[dict[str, Any]]


class Piece(Protocol):
    """A frozen dataclass of numbers and names."""

    @property
    def name(self) -> str:
        """Of the run and its files."""

    @property
    def file(self) -> Path:
        """Where the figures lie."""

    def spec(self, data: Path, teacher: Path) -> dict[str, Any]:
        """The run as a job file."""

    def run(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Train, and return what came out."""


def found(piece: Piece) -> dict[str, Any]:
    """What the run left. Raises FileNotFoundError where it has not been run."""
    return json.loads(piece.file.read_text())


def miou(piece: Piece) -> float:
    return found(piece)["score"]["miou"]


def job(name: str, losses: Losses, seed: int, epochs: int, data: Path, teacher: Path, **signals: Any) -> dict[str, Any]:
    """A job file of the comparisons; one without a teacher where the cross-entropy stands alone. `signals` are fields
    that say how a teacher is heard."""
    taught = len(losses) > 1
    return {
        "kind": "distill" if taught else "train",
        "name": name.replace("_", "-"),
        "dataset": {"name": "camvid", "root": str(data), "size": [240, 320]},
        **({"teacher": {"weights": str(teacher)}, **signals} if taught else {}),
        "student": {"network": STUDENT},
        "losses": losses,
        "train": {
            "epochs": epochs,
            "batch": 4,
            "learning_rate": 3e-3,
            "schedule": "one_cycle",
            "augment": {"crop": [128, 192]},
            "seed": seed,
            "threads": 1,
            "log_every": 100,
        },
        "evaluate": {"every_epochs": epochs, "batch": 8, "pictures": 0},
    }


def trained(spec: dict[str, Any], out: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Train by a job file in the folder `out`: the figures every comparison wants, and the run. `options` go to
    `train`."""
    from dsd_core.events import Event, Progress
    from dsd_core.export import code_version
    from dsd_core.spec import parse_spec
    from dsd_core.train import train

    progress: list[Progress] = []

    def keep(event: Event) -> None:
        if isinstance(event, Progress):
            progress.append(event)

    out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    run, _ = train(parse_spec(spec), out, keep, **options)
    figures = {
        "steps": progress[-1].steps,
        "score": run.scores["student"].model_dump(),
        "teacher": run.scores["teacher"].model_dump() if "teacher" in run.scores else None,
        "last_losses": progress[-1].losses,
        "grad_norms": {"first": progress[0].grad_norms, "last": progress[-1].grad_norms},
        "train_seconds": run.spent["student"].seconds,
        "train_cpu_seconds": run.spent["student"].cpu_seconds,
        "cpu_seconds": time.process_time() - start,
        "code_version": code_version(),
    }
    return figures, run


def run_all(module: str, pieces: Sequence[Piece], arguments: argparse.Namespace) -> None:
    """Run the pieces of `benchmarks.module` that have no figures yet, `arguments.jobs` at a time."""

    def run(piece: Any) -> None:
        where = ("--data", arguments.data, "--teacher", arguments.teacher, "--runs", arguments.runs)
        command = [sys.executable, "-m", f"benchmarks.{module}", "--piece", json.dumps(asdict(piece)), *map(str, where)]
        start = time.monotonic()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{piece.name} ended with exit code {done.returncode}.")
        print(f"{piece.name:34} mIoU {miou(piece):.4f}   {time.monotonic() - start:.0f} s", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, [piece for piece in pieces if not piece.file.exists()]))


def run_one(kind: type[Piece], arguments: argparse.Namespace) -> None:
    """The piece that `arguments.piece` describes: run it in this process and keep its figures."""
    piece = kind(**json.loads(arguments.piece))
    write(piece.file, json.dumps(piece.run(arguments), indent=1) + "\n")


def write(file: Path, text: str) -> None:
    """The file with this text, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".tmp")
    partial.write_text(text)
    partial.rename(file)


def parsed(description: str | None, target: str) -> argparse.Namespace:
    """The options that all comparisons have, with paths from the working folder made absolute; ends the program where
    data or teacher are missing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_places(parser)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / target, help="where checkpoints lie")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="run nothing; write the table of the pieces there are")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.runs = arguments.runs.resolve()
    if not arguments.table:
        check_places(arguments)
    return arguments


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "CamVid", help="the CamVid folder")
    weights = SHARED / "weights" / "camvid11_fpn_lite0_240x320.safetensors"
    parser.add_argument("--teacher", type=Path, default=weights, help="the teacher's weights file")


def check_places(arguments: argparse.Namespace) -> None:
    """Make data and teacher absolute. Ends the program where one is missing."""
    arguments.data, arguments.teacher = arguments.data.resolve(), arguments.teacher.resolve()
    for path in (arguments.data, arguments.teacher):
        if not path.exists():
            raise SystemExit(f"There is no {path}. Give CamVid and a teacher: --data FOLDER --teacher FILE.")
