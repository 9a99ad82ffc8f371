"""What stored teacher signals cost in accuracy: CamVid, one teacher, one student, three seeds. `make views` runs it.

The student is trained without a teacher, with the teacher in the loop on fresh views, from image signals of one and of
three scales, and from view signals of V views an image. All runs share one signal store. Pieces run seed by seed, so
that the table of those that are there is a comparison too; their figures lie in `benchmarks/results/camvid_views/`, the
table in `benchmarks/results/camvid_views.{json,md,png}`.
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
from dsd_core.distill.presets import PRESETS

PIECES = RESULTS / "camvid_views"
EPOCHS = 20  # more than there are views of an image in any kind, or their number would mean nothing
LOSSES: Losses = [CE, *(loss for loss in PRESETS["dsd_cwd"] if loss["loss"] != "ce")]
VIEWS = (1, 2, 4, 8, 16)
FRESH, NONE = "fresh", "none"
KINDS: dict[str, dict[str, Any]] = {
    NONE: {},
    FRESH: {"signals": "off"},
    "image": {"signals": "image", "scales": [1.0]},
    "view-8": {"signals": "view", "views": 8},
    "image-3": {"signals": "image", "scales": [0.75, 1.0, 1.5]},
    "view-16": {"signals": "view", "views": 16},
    "view-4": {"signals": "view", "views": 4},
    "view-2": {"signals": "view", "views": 2},
    "view-1": {"signals": "view", "views": 1},
}
"""How the teacher is heard, by name, in the order in which a seed's runs are made."""
ORDER = (NONE, FRESH, "image", "image-3", *(f"view-{views}" for views in VIEWS))
NAMES = {
    NONE: "no teacher",
    FRESH: "teacher in the loop",
    "image": "image signals, scale 1",
    "image-3": "image signals, scales 0.75, 1, 1.5",
} | {f"view-{views}": f"view signals, V = {views}" for views in VIEWS}


@dataclass(frozen=True)
class Piece:
    """One run."""

    kind: str
    seed: int
    epochs: int = EPOCHS

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}-epochs{self.epochs}"

    @property
    def file(self) -> Path:
        return PIECES / f"{self.name}.json"

    def spec(self, data: Path, teacher: Path) -> dict[str, Any]:
        losses = [CE] if self.kind == NONE else LOSSES
        return job(self.name, losses, self.seed, self.epochs, data, teacher, **KINDS[self.kind])

    def run(self, arguments: argparse.Namespace) -> dict[str, Any]:
        from dsd_core.signals.store import Store

        spec = self.spec(arguments.data, arguments.teacher)
        figures, run = trained(spec, arguments.runs / self.name, store=Store(arguments.runs / "signals"))
        of = {"kind": self.kind, "settings": KINDS[self.kind], "seed": self.seed, "epochs": self.epochs}
        return of | figures | {"signals": run.signals and run.signals.model_dump()}


def pieces() -> Iterator[Piece]:
    return (Piece(kind, seed) for seed in SEEDS for kind in KINDS)


def row(kind: str) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) over the seeds that have been run, all of them in both."""
    there = [Piece(kind, seed) for seed in SEEDS if Piece(kind, seed).file.exists()]
    kept, scores = [found(piece) for piece in there], [miou(piece) for piece in there]
    pairs = [(piece, Piece(FRESH, piece.seed)) for piece in there if Piece(FRESH, piece.seed).file.exists()]
    behind = [miou(fresh) - miou(piece) for piece, fresh in pairs]
    return {
        "kind": kind,
        "settings": KINDS[kind],
        "seeds": [piece.seed for piece in there],
        "miou": scores,
        "miou_mean": statistics.mean(scores),
        "miou_spread": statistics.stdev(scores) if len(scores) > 1 else None,
        "behind_fresh": behind,
        "behind_fresh_mean": statistics.mean(behind) if behind else None,
        "cpu_seconds_per_step": min(piece["train_cpu_seconds"] / piece["steps"] for piece in kept),
        "signals": [piece["signals"] for piece in kept],
    }


def verdict(row: dict[str, Any], fresh: dict[str, Any] | None) -> bool | None:
    """Whether the mean is at most one standard deviation of the fresh views' below theirs. None where either has not
    all its seeds."""
    if fresh is None or fresh["seeds"] != list(SEEDS) or row["seeds"] != list(SEEDS):
        return None
    return row["miou_mean"] >= fresh["miou_mean"] - fresh["miou_spread"]


def report() -> dict[str, Any]:
    """The comparison, from the pieces that are there."""
    rows = [row(kind) for kind in ORDER if any(Piece(kind, seed).file.exists() for seed in SEEDS)]
    fresh = next((row for row in rows if row["kind"] == FRESH), None)
    for each in rows:
        each["within_one_deviation_of_fresh"] = verdict(each, fresh)
    taught = [kept["teacher"] for piece in pieces() if piece.file.exists() and (kept := found(piece))["teacher"]]
    if not taught:
        raise SystemExit(f"No student with a teacher has been trained: there is no figure in {PIECES}. Run make views.")
    protocol = Piece(FRESH, SEEDS[0]).spec(Path("CamVid"), Path("teacher.safetensors"))
    return {
        "command": "make views",
        "seeds": list(SEEDS),
        "epochs": EPOCHS,
        "protocol": {part: protocol[part] for part in ("dataset", "student", "losses", "train", "evaluate")},
        "teacher_miou": taught[0]["miou"],
        "table": rows,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    weights = " + ".join(f"{loss.get('weight', 1):g} {loss['loss']}" for loss in LOSSES[1:])
    lines = [
        "# Stored teacher signals against the teacher in the loop",
        "",
        f"Made by `{report['command']}` from the pieces in `camvid_views/`. Teacher FPN EfficientNet-Lite0 (mIoU"
        f" {report['teacher_miou']:.4f}), {SETTING.format(epochs=report['epochs'], seeds=len(report['seeds']))}."
        f" Cross-entropy with `class_weights: log`, and with a teacher {weights}. mIoU is on val, whose frames come"
        " from one training sequence. Spread is the sample standard deviation over the seeds; `behind` is the mean of"
        " the differences to the teacher in the loop, seed by seed; `as good`: the mean is not more than one standard"
        " deviation of the teacher in the loop below its mean. All seeds draw the same V views. The step is the CPU"
        " time relative to the student without a teacher, the least of the seeds, filling the store or not.",
        "",
        "![mIoU by kind of signals](camvid_views.png)",
        "",
        "| the student learns with | mIoU by seed | mean | spread | behind | as good | step |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = next((row for row in report["table"] if row["kind"] == NONE), None)
    for row in report["table"]:
        scores = ", ".join(f"{score:.4f}" for score in row["miou"])
        spread = "" if row["miou_spread"] is None else f"{row['miou_spread']:.4f}"
        behind = "" if row["behind_fresh_mean"] is None else f"{row['behind_fresh_mean']:+.4f}"
        good = {None: "", True: "yes", False: "no"}[row["within_one_deviation_of_fresh"]]
        step = "" if plain is None else f"{row['cpu_seconds_per_step'] / plain['cpu_seconds_per_step']:.2f}"
        lines.append(
            f"| {NAMES[row['kind']]} | {scores} | {row['miou_mean']:.4f} | {spread} | {behind} | {good} | {step} |"
        )
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """mIoU against V, beside the kinds that have none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {row["kind"]: row for row in report["table"]}
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for kind, colour in ((NONE, "tab:gray"), (FRESH, "tab:blue"), ("image", "tab:green"), ("image-3", "tab:olive")):
        if kind in rows:
            mean, spread = rows[kind]["miou_mean"], rows[kind]["miou_spread"] or 0.0
            axes.axhline(mean, color=colour, label=NAMES[kind])
            axes.axhspan(mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    views = [views for views in VIEWS if f"view-{views}" in rows]
    means, spreads = ([rows[f"view-{v}"][of] or 0.0 for v in views] for of in ("miou_mean", "miou_spread"))
    axes.errorbar(views, means, yerr=spreads, color="tab:red", marker="o", capsize=3, label="view signals")
    for v in views:
        scores = rows[f"view-{v}"]["miou"]
        axes.plot([v] * len(scores), scores, ".", color="tab:red", alpha=0.4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(VIEWS, [str(v) for v in VIEWS])
    axes.set_xlabel("views V of an image")
    axes.set_ylabel("mIoU on val")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def write_table() -> None:
    made = report()
    (RESULTS / "camvid_views.json").write_text(json.dumps(made, indent=1) + "\n")
    (RESULTS / "camvid_views.md").write_text(markdown(made))
    draw(made, RESULTS / "camvid_views.png")


def main() -> None:
    arguments = parsed(__doc__, "camvid_views")
    if arguments.piece:
        run_one(Piece, arguments)
        return
    for seed in () if arguments.table else SEEDS:
        run_all("camvid_views", [piece for piece in pieces() if piece.seed == seed], arguments)
        write_table()
    if arguments.table:
        write_table()
    print((RESULTS / "camvid_views.md").read_text())


if __name__ == "__main__":
    main()
