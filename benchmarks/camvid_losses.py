"""Which loss teaches best: CamVid, one teacher, one student, every method with three seeds. `make compare` runs it.

A piece is one training run: a method with its weight, and a seed. Finished pieces lie as JSON in
`benchmarks/results/camvid_losses/`; those that are there are not run again, and an interrupted one goes on from its
checkpoint. Weights are chosen first, from three candidates a method, by the mIoU on val of a short run with a seed that
the comparison does not use. The table is then written to `benchmarks/results/camvid_losses.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PIECES = RESULTS / "camvid_losses"
SHARED = ROOT.parent / "shared"
SEEDS = (0, 1, 2)
SEARCH_SEED, SEARCH_EPOCHS, EPOCHS = 100, 3, 6
CE = {"loss": "ce", "class_weights": "log"}

Losses = list[dict[str, Any]]


def _scaled(weights: tuple[float, ...], *losses: dict[str, Any]) -> list[Losses]:
    """The losses with each of the weights in turn; where there are several, the weight multiplies each one's own."""
    return [[{**loss, "weight": weight * loss.get("weight", 1.0)} for loss in losses] for weight in weights]


PSD, CSD = {"loss": "psd"}, {"loss": "csd", "weight": 10.0, "logits_at": "head"}
KD, CWD = {"loss": "kd", "logits_at": "head"}, {"loss": "cwd", "weight": 1.0, "logits_at": "head"}
CANDIDATES: dict[str, list[Losses]] = {
    "none": [[]],
    "kd": _scaled((1.0, 3.0, 10.0), KD),
    "at": _scaled((1.0, 3.0, 10.0), {"loss": "at", "on": "taps"}),
    "skd": _scaled((3.0, 10.0, 30.0), {"loss": "skd_pairwise", "pool": 2}),
    "ifvd": _scaled((3.0, 10.0, 30.0), {"loss": "ifvd"}),
    "cwd": _scaled((1.0, 3.0, 10.0), CWD),
    "cirkd": _scaled((0.3, 1.0, 3.0), {"loss": "cirkd", "stride": 8}),
    "dist": _scaled((0.3, 1.0, 3.0), {"loss": "dist", "logits_at": "head"}),
    "dsd": _scaled((1.0, 3.0, 10.0), PSD, CSD),
    "dsd_kd": _scaled((1.0, 3.0, 10.0), PSD, CSD, KD),
    "dsd_cwd": [[*losses, CWD] for losses in _scaled((0.3, 1.0, 3.0), PSD, CSD)],
}
"""What is tried for each method, beside the cross-entropy that all have. Every loss stands alone, as in table 2 of
Shu et al. (ICCV 2021), but for those that are combinations by name."""


@dataclass(frozen=True)
class Piece:
    """One run: `number` is that of the candidate."""

    method: str
    number: int
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.number}-seed{self.seed}-epochs{self.epochs}"

    @property
    def file(self) -> Path:
        return PIECES / f"{self.name}.json"

    @property
    def losses(self) -> Losses:
        return [CE, *CANDIDATES[self.method][self.number]]

    def found(self) -> dict[str, Any]:
        """What the run left. Raises FileNotFoundError where it has not been run."""
        return json.loads(self.file.read_text())


def search() -> Iterator[Piece]:
    """The runs that choose the weights."""
    for method, candidates in CANDIDATES.items():
        yield from (Piece(method, number, SEARCH_SEED, SEARCH_EPOCHS) for number in range(len(candidates)))


def chosen(method: str) -> int:
    """Number of the candidate with the best mIoU on val in the short runs."""
    tried = [piece for piece in search() if piece.method == method]
    return max(tried, key=lambda piece: piece.found()["score"]["miou"]).number


def comparison() -> Iterator[Piece]:
    """The runs that are compared, seed by seed, so that a table of fewer seeds is whole."""
    numbers = {method: chosen(method) for method in CANDIDATES}
    return (Piece(method, number, seed, EPOCHS) for seed in SEEDS for method, number in numbers.items())


def spec_of(piece: Piece, data: Path, teacher: Path) -> dict[str, Any]:
    """The piece as a job file."""
    taught = len(piece.losses) > 1
    return {
        "kind": "distill" if taught else "train",
        "name": piece.name.replace("_", "-"),
        "dataset": {"name": "camvid", "root": str(data), "size": [240, 320]},
        **({"teacher": {"weights": str(teacher)}} if taught else {}),
        "student": {
            "network": {
                "name": "fpn",
                "encoder": "tu-lcnet_050",
                "options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
            }
        },
        "losses": piece.losses,
        "train": {
            "epochs": piece.epochs,
            "batch": 4,
            "learning_rate": 3e-3,
            "schedule": "one_cycle",
            "augment": {"crop": [128, 192]},
            "seed": piece.seed,
            "threads": 1,
            "log_every": 100,
        },
        "evaluate": {"every_epochs": piece.epochs, "batch": 8, "pictures": 0},
    }


def run_piece(piece: Piece, data: Path, teacher: Path, runs: Path) -> None:
    """Train, score on val, and write what came out; in a process of its own."""
    from dsd_core.events import Event, Progress
    from dsd_core.export import code_version
    from dsd_core.spec import parse_spec
    from dsd_core.train import train

    progress: list[Progress] = []

    def keep(event: Event) -> None:
        if isinstance(event, Progress):
            progress.append(event)

    spec = parse_spec(spec_of(piece, data, teacher))
    out = runs / piece.name
    out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    run, _ = train(spec, out, keep)
    found = {
        "method": piece.method,
        "losses": piece.losses,
        "seed": piece.seed,
        "epochs": piece.epochs,
        "steps": progress[-1].steps,
        "score": run.scores["student"].model_dump(),
        "teacher": run.scores["teacher"].model_dump() if "teacher" in run.scores else None,
        "last_losses": progress[-1].losses,
        "grad_norms": {"first": progress[0].grad_norms, "last": progress[-1].grad_norms},
        "train_seconds": run.spent["student"].seconds,
        "cpu_seconds": time.process_time() - start,
        "code_version": code_version(),
    }
    PIECES.mkdir(parents=True, exist_ok=True)
    partial = piece.file.with_suffix(".tmp")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(piece.file)


def run_all(pieces: list[Piece], arguments: argparse.Namespace) -> None:
    """Run the pieces that have no result yet, `jobs` at a time."""

    def run(piece: Piece) -> None:
        own = ("--piece", f"{piece.method}:{piece.number}:{piece.seed}:{piece.epochs}")
        where = ("--data", arguments.data, "--teacher", arguments.teacher, "--runs", arguments.runs)
        command = [sys.executable, __file__, *own, *map(str, where)]
        start = time.monotonic()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
        if done.returncode:
            raise SystemExit(f"{piece.name} ended with exit code {done.returncode}.")
        miou = piece.found()["score"]["miou"]
        print(f"{piece.name:34} mIoU {miou:.4f}   {time.monotonic() - start:.0f} s", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, [piece for piece in pieces if not piece.file.exists()]))


def row(method: str) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) over the seeds; the gain is paired, seed by seed."""
    found, plain = ([Piece(name, chosen(name), seed, EPOCHS).found() for seed in SEEDS] for name in (method, "none"))
    scores = [piece["score"]["miou"] for piece in found]
    gains = [piece["score"]["miou"] - other["score"]["miou"] for piece, other in zip(found, plain, strict=True)]
    return {
        "method": method,
        "losses": found[0]["losses"],
        "miou": scores,
        "miou_mean": statistics.mean(scores),
        "miou_spread": statistics.stdev(scores),
        "gain_mean": statistics.mean(gains),
        "gain_spread": statistics.stdev(gains),
        "pixel_accuracy_mean": statistics.mean(piece["score"]["pixel_accuracy"] for piece in found),
        "seconds_per_step": min(piece["train_seconds"] / piece["steps"] for piece in found),
    }


def write_table() -> None:
    """The comparison as JSON and Markdown, from the pieces."""
    rows = sorted((row(method) for method in CANDIDATES), key=lambda row: -row["miou_mean"])
    tried = [
        {"method": p.method, "losses": p.losses, "seed": p.seed, "epochs": p.epochs, "miou": p.found()["score"]["miou"]}
        for p in search()
    ]
    teacher = next(found for p in search() if (found := p.found())["teacher"])["teacher"]
    protocol = spec_of(Piece("dsd", chosen("dsd"), SEEDS[0], EPOCHS), Path("CamVid"), Path("teacher.safetensors"))
    report = {
        "command": "make compare",
        "seeds": list(SEEDS),
        "protocol": {part: protocol[part] for part in ("dataset", "student", "train", "evaluate")},
        "teacher_miou": teacher["miou"],
        "table": rows,
        "search": tried,
    }
    (RESULTS / "camvid_losses.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "camvid_losses.md").write_text(markdown(report))


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    plain = next(row for row in report["table"] if row["method"] == "none")
    lines = [
        "# Losses compared on CamVid",
        "",
        f"Made by `{report['command']}` from the pieces in `camvid_losses/`. Teacher FPN EfficientNet-Lite0 (mIoU"
        f" {report['teacher_miou']:.4f}), student FPN LCNet-050 of 0.35 M parameters from random weights; images of"
        f" 240x320, crops of 128x192, batch 4, {EPOCHS} epochs, one CPU thread, {len(SEEDS)} seeds. Every row has the"
        " cross-entropy with `class_weights: log` beside what it names. mIoU is on val, whose frames come from one"
        " training sequence; weights were chosen on val too, with another seed and shorter runs. Spread is the sample"
        " standard deviation; gains are paired by seed. The step's time is relative to the student without a teacher,"
        " with the teacher in the loop.",
        "",
        "| method | terms | mIoU | spread | gain | spread | pixel accuracy | step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["table"]:
        terms = " + ".join(f"{loss['weight']:g} {loss['loss']}" for loss in row["losses"][1:]) or "-"
        lines.append(
            f"| {row['method']} | {terms} | {row['miou_mean']:.4f} | {row['miou_spread']:.4f} "
            f"| {row['gain_mean']:+.4f} | {row['gain_spread']:.4f} | {row['pixel_accuracy_mean']:.4f} "
            f"| {row['seconds_per_step'] / plain['seconds_per_step']:.2f} |"
        )
    lines += [
        "",
        f"## How the weights were chosen (seed {SEARCH_SEED}, {SEARCH_EPOCHS} epochs)",
        "",
        "| method | terms | mIoU |",
    ]
    lines += ["|---|---|---|"]
    for tried in report["search"]:
        terms = " + ".join(f"{loss['weight']:g} {loss['loss']}" for loss in tried["losses"][1:]) or "-"
        lines.append(f"| {tried['method']} | {terms} | {tried['miou']:.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "CamVid", help="the CamVid folder")
    weights = SHARED / "weights" / "camvid11_fpn_lite0_240x320.safetensors"
    parser.add_argument("--teacher", type=Path, default=weights, help="the teacher's weights file")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "camvid_losses", help="where checkpoints lie")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for path in (arguments.data, arguments.teacher):
        if not path.exists():
            raise SystemExit(f"There is no {path}. Give CamVid and a teacher: make compare DATA=... TEACHER=...")
    if arguments.piece:
        method, *numbers = arguments.piece.split(":")
        run_piece(Piece(method, *map(int, numbers)), arguments.data, arguments.teacher, arguments.runs)
        return
    run_all(list(search()), arguments)
    run_all(list(comparison()), arguments)
    write_table()
    print((RESULTS / "camvid_losses.md").read_text())


if __name__ == "__main__":
    main()
