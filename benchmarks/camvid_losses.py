"""Which loss teaches best: CamVid, one teacher, one student, every method with three seeds. `make compare` runs it.

A piece is one training run: a method with its weight, and a seed. Their figures lie in
`benchmarks/results/camvid_losses/`. Weights are chosen first, from three candidates a method, by the mIoU on val of a
short run with a seed that the comparison does not use. The table is then written to
`benchmarks/results/camvid_losses.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pieces import CE, RESULTS, SEEDS, SETTING, Losses, found, job, miou, parsed, run_all, run_one, trained

PIECES = RESULTS / "camvid_losses"
SEARCH_SEED, SEARCH_EPOCHS, EPOCHS = 100, 3, 6


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

    def spec(self, data: Path, teacher: Path) -> dict[str, Any]:
        return job(self.name, self.losses, self.seed, self.epochs, data, teacher, signals="off")

    def run(self, arguments: argparse.Namespace) -> dict[str, Any]:
        figures, _ = trained(self.spec(arguments.data, arguments.teacher), arguments.runs / self.name)
        of = {"method": self.method, "losses": self.losses, "seed": self.seed, "epochs": self.epochs}
        return of | figures


def search() -> Iterator[Piece]:
    """The runs that choose the weights."""
    for method, candidates in CANDIDATES.items():
        yield from (Piece(method, number, SEARCH_SEED, SEARCH_EPOCHS) for number in range(len(candidates)))


def chosen(method: str) -> int:
    """Number of the candidate with the best mIoU on val in the short runs."""
    tried = [piece for piece in search() if piece.method == method]
    return max(tried, key=miou).number


def comparison() -> Iterator[Piece]:
    """The runs that are compared, seed by seed, so that a table of fewer seeds is whole."""
    numbers = {method: chosen(method) for method in CANDIDATES}
    return (Piece(method, number, seed, EPOCHS) for seed in SEEDS for method, number in numbers.items())


def row(method: str) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) over the seeds; the gain is paired, seed by seed."""
    taught, plain = ([found(Piece(name, chosen(name), seed, EPOCHS)) for seed in SEEDS] for name in (method, "none"))
    scores = [piece["score"]["miou"] for piece in taught]
    gains = [piece["score"]["miou"] - other["score"]["miou"] for piece, other in zip(taught, plain, strict=True)]
    return {
        "method": method,
        "losses": taught[0]["losses"],
        "miou": scores,
        "miou_mean": statistics.mean(scores),
        "miou_spread": statistics.stdev(scores),
        "gain_mean": statistics.mean(gains),
        "gain_spread": statistics.stdev(gains),
        "pixel_accuracy_mean": statistics.mean(piece["score"]["pixel_accuracy"] for piece in taught),
        "seconds_per_step": min(piece["train_seconds"] / piece["steps"] for piece in taught),
    }


def write_table() -> None:
    """The comparison as JSON and Markdown, from the pieces."""
    rows = sorted((row(method) for method in CANDIDATES), key=lambda row: -row["miou_mean"])
    tried = [
        {"method": p.method, "losses": p.losses, "seed": p.seed, "epochs": p.epochs, "miou": miou(p)} for p in search()
    ]
    teacher = next(kept for p in search() if (kept := found(p))["teacher"])["teacher"]
    protocol = Piece("dsd", chosen("dsd"), SEEDS[0], EPOCHS).spec(Path("CamVid"), Path("teacher.safetensors"))
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
        f" {report['teacher_miou']:.4f}), {SETTING.format(epochs=EPOCHS, seeds=len(SEEDS))}. Every row has the"
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
    arguments = parsed(__doc__, "camvid_losses")
    if arguments.piece:
        run_one(Piece, arguments)
        return
    if not arguments.table:
        run_all("camvid_losses", list(search()), arguments)
        run_all("camvid_losses", list(comparison()), arguments)
    write_table()
    print((RESULTS / "camvid_losses.md").read_text())


if __name__ == "__main__":
    main()
