"""`python -m dsd_core`: the library's command line. The worker and `dsd run` start `run` through this same door.

A process ends with the exit code of its error class (`dsd_core.errors`); 0 means done, 75 stopped with a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from dsd_core.errors import DataError, DsdError, SpecError

if TYPE_CHECKING:
    from dsd_core.events import Score

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
data_app = typer.Typer(help="Datasets before they are trained on.", no_args_is_help=True)
app.add_typer(data_app, name="data")
signals_app = typer.Typer(help="Teachers' signals that were kept in a folder.", no_args_is_help=True)
app.add_typer(signals_app, name="signals")

Weights = Annotated[
    Path | None, typer.Option(help="safetensors file; a .json beside it may say network and preprocessing")
]
Model = Annotated[Path | None, typer.Option(help="exported student, model.onnx")]
Network = Annotated[
    str | None, typer.Option(help="a name of `dsd catalog`, a decoder with its encoder as fpn:resnet18")
]
PreprocessName = Annotated[str | None, typer.Option("--preprocess", help="a name, or a .json file")]
SizeText = Annotated[str | None, typer.Option("--size", help="HEIGHTxWIDTH every image is resized to")]
SignalsFolder = Annotated[
    Path, typer.Option("--folder", exists=True, file_okay=False, help="a run's signals folder, or what --store named")
]
SignalsKey = Annotated[str | None, typer.Option("--key", help="one entry, by its key or how that begins")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default all cores")]


def _bytes(text: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is no number of bytes; write 5000000 or 5GB.") from error


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="job file, YAML or JSON of JobSpec")],
    out: Annotated[Path, typer.Option(help="run folder; an interrupted run in it is resumed")],
    teacher: Annotated[Path | None, typer.Option(help="weights file of the teacher, in place of the spec's")] = None,
    student: Annotated[
        Path | None, typer.Option(help="weights file of the student to evaluate or export, in place of the spec's")
    ] = None,
    fence: Annotated[int, typer.Option(min=0, help="number of this attempt, in the names of its checkpoints")] = 0,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="keeps the teacher's signals for further runs, which may share it; default OUT/signals"
        ),
    ] = None,
    store_bytes: Annotated[
        int | None, typer.Option(parser=_bytes, metavar="N", help="the most it may hold, as 20GB; default 20GiB")
    ] = None,
) -> None:
    """Do a job in a run folder, without any service: train its student, or evaluate or export one."""
    from dsd_core.attempt import run_attempt
    from dsd_core.signals.store import DEFAULT_BYTES, Store

    kept = Store(store or out / "signals", DEFAULT_BYTES if store_bytes is None else store_bytes)
    run_attempt(job, out, teacher_weights=teacher, student_weights=student, fence=fence, store=kept)


@app.command()
def check(job: Annotated[Path, typer.Argument(help="job file, YAML or JSON of JobSpec")]) -> None:
    """Print the resolved spec, what was found and what the job will take, as JSON; nothing is trained."""
    from dsd_core.check import check as check_spec
    from dsd_core.spec import load_spec

    print(json.dumps(check_spec(load_spec(job)).as_dict(), indent=1))


@app.command()
def profile(
    job: Annotated[Path, typer.Argument(help="job file, YAML or JSON of JobSpec")],
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="optimiser steps that are measured")] = 30,
    teacher: Annotated[Path | None, typer.Option(help="weights file of the teacher, in place of the spec's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Train for some steps and print where a step's time goes and what limits it; nothing is kept."""
    from dsd_core.profile import profile as take
    from dsd_core.spec import load_spec

    found = take(load_spec(job), steps, teacher_weights=teacher)
    print(json.dumps(found.as_dict()) if as_json else found.as_text())


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help="a dataset by name, such as camvid")],
    root: Annotated[str | None, typer.Option(help="the dataset's folder")] = None,
    split: str = "val",
    weights: Weights = None,
    network: Network = None,
    preprocess: PreprocessName = None,
    model: Model = None,
    size: SizeText = None,
    batch: int = 4,
    window: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of a sliding window; default the whole image")
    ] = None,
    stride: Annotated[
        str | None, typer.Option(help="DOWNxRIGHT from window to window; default two thirds of it")
    ] = None,
    scales: Annotated[
        str, typer.Option(help="such as 0.5,1,1.5: the image is seen at each, probabilities averaged")
    ] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="the image is also seen mirrored")] = False,
    boundary: Annotated[bool, typer.Option(help="boundary IoU too")] = True,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Score a weights file or an exported student on a split: mIoU, accuracies, IoU of each class, boundary IoU."""
    from dsd_core.spec import parse_evaluation
    from dsd_core.weights import given_file

    options = parse_evaluation(
        {
            "mode": "whole" if window is None else "sliding",
            "window": _parse_size(window),
            "stride": _parse_size(stride),
            "scales": scales.split(","),
            "flip": flip,
            "boundary": boundary,
            "batch": batch,
        }
    )
    height_width = _parse_size(size)
    given_file(weights, model)

    # These take seconds, which wrong arguments need not wait for.
    from dsd_core.data import open_dataset
    from dsd_core.data.loader import eval_batches
    from dsd_core.evaluate import evaluate as score_on
    from dsd_core.inference import predictor as looking
    from dsd_core.predict import open_predictor

    data = open_dataset(dataset, root, split, height_width)
    predictor = open_predictor(weights, network, preprocess, model, classes=data.classes, threads=threads)
    logits_of, batches = looking(predictor.logits, options), eval_batches(data, options.batch)
    score, images, seconds = score_on(logits_of, batches, data.classes, boundary=options.boundary)
    figures = {**score.model_dump(), "images": images, "seconds": round(seconds, 3), "split": split}
    if as_json:
        print(json.dumps(figures))
        return
    if score.miou is None:
        print(f"The split {split!r} has no labels to score on; {images} images in {seconds:.1f} s")
        return
    _print_score(score)
    print(f"{images} images in {seconds:.1f} s")


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(help="PNG or JPEG")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write")],
    weights: Weights = None,
    network: Network = None,
    preprocess: PreprocessName = None,
    model: Model = None,
    size: SizeText = None,
    style: Annotated[
        str, typer.Option(help="colours, overlay (colours over the image) or ids (class ids as grey)")
    ] = "overlay",
    threads: Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object: the file, and the share of each class id")
    ] = False,
) -> None:
    """Segment one image and write the mask as a PNG of the image's own size."""
    from dsd_core.weights import given_file

    given_file(weights, model)  # first, for torch takes seconds to load
    from dsd_core.predict import open_predictor, segment_file

    predictor = open_predictor(weights, network, preprocess, model, threads=threads)
    shares = segment_file(predictor, image, out, size=_parse_size(size), style=style)
    print(json.dumps({"out": str(out), "shares": shares}) if as_json else f"Wrote {out}.")


@app.command()
def inspect(
    network: Annotated[str, typer.Argument(help="a name, fpn:resnet18, or a NetworkSpec as JSON")],
    classes: Annotated[int, typer.Option(min=1, max=10_000, help="outputs")] = 19,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the image")] = "512x512",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, with every tap")] = False,
) -> None:
    """Print a network's parameters, FLOPs, taps and the licences of its weights; nothing is computed or downloaded."""
    from dsd_core.models.inspection import as_text, inspect_network
    from dsd_core.models.sidecar import network_from_text

    height_width = _parse_size(size) or (512, 512)
    found = inspect_network(network_from_text(network, field="NETWORK"), classes, height_width, field="NETWORK")
    print(json.dumps(found.as_dict()) if as_json else as_text(found))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="PyTorch checkpoint, .pt or .pth")],
    target: Annotated[Path, typer.Argument(help="safetensors file to write")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Write a checkpoint's tensors as safetensors; it is read in a process of its own, and nothing in it is run."""
    from dsd_core.models.pickles import convert as convert_file

    shapes = convert_file(source, target)
    values = sum(math.prod(shape) for shape in shapes.values())
    figures = {"file": str(target), "tensors": len(shapes), "values": values}
    print(json.dumps(figures) if as_json else f"Wrote {target}: {len(shapes)} tensors, {values:,} values.")


@data_app.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="a dataset by name, such as cityscapes or folder")],
    root: Annotated[str | None, typer.Argument(help="the dataset's folder; streets has none")] = None,
    size: SizeText = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Read every image and mask of a dataset once and report sizes, classes, all bad files and duplicates.

    Exit code 0: the dataset can be used; 65: the report says what is wrong with it.
    """
    from dsd_core.data.report import check_data as read_all

    with _progress() as tell:
        report = read_all(name, root, _parse_size(size), tell)
    print(json.dumps(report.as_dict()) if as_json else report.as_text())
    if not report.clean:
        sys.exit(DataError.exit_code)


@signals_app.command("list")
def list_signals(
    folder: SignalsFolder, as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False
) -> None:
    """Print what is kept, least recently used first: key, what it is of, records, bytes, last use."""
    from dsd_core.signals.listing import entry_text, listed
    from dsd_core.signals.store import Store

    held = listed(Store(folder))
    if as_json:
        print(json.dumps(held))
        return
    for entry in held["data"]:
        print(entry_text(entry))
    print(f"{len(held['data'])} entries, {held['bytes'] / 1e6:,.1f} MB in {folder}")


@signals_app.command("verify")
def verify_signals(
    folder: SignalsFolder,
    key: SignalsKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Hold every record against its checksum; what is damaged is forgotten, and computed again by the next run."""
    from dsd_core.signals.listing import SHORT, the_key, verified
    from dsd_core.signals.store import Store

    store = Store(folder)
    found = verified(store, key and the_key(store, key, field="--key"))
    if as_json:
        print(json.dumps(found))
        return
    for entry in found["data"]:
        damaged = f"{entry['damaged']} damaged" if entry["whole"] else "damaged as a whole"
        print(f"{entry['key'][:SHORT]}  {entry['filled']} records are right, {damaged}")
    print("Nothing is damaged." if not found["damaged"] else "What was damaged is forgotten.")


@signals_app.command("prune")
def prune_signals(
    folder: SignalsFolder,
    key: SignalsKey = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="only what was not used for so long")
    ] = None,
    to_bytes: Annotated[
        int | None,
        typer.Option("--to-bytes", parser=_bytes, metavar="N", help="the least recently used, until N are left"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would go, and delete nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Delete what all options let go, and no run uses."""
    from dsd_core.signals.listing import SHORT, entry_text, pruned, the_key
    from dsd_core.signals.store import Store

    if key is None and older_than is None and to_bytes is None:
        raise typer.BadParameter("Say what shall go: --key, --older-than, --to-bytes.")
    store = Store(folder)
    done = pruned(
        store,
        key=key and the_key(store, key, field="--key"),
        older_than_days=older_than or 0.0,
        to_bytes=to_bytes or 0,
        dry_run=dry_run,
    )
    if as_json:
        print(json.dumps(done))
        return
    for entry in done["data"]:
        print(entry_text(entry))
    for entry in done["in_use"]:
        print(f"{entry['key'][:SHORT]}  is in use, and stays")
    print(f"{done['bytes'] / 1e6:,.1f} MB {'would go' if dry_run else 'went'}.")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a split on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def tell(split: str, done: int, total: int) -> None:
            if split not in bars:
                bars[split] = progress.add_task(split, total=total)
            progress.update(bars[split], completed=done)

        yield tell


def main() -> None:
    try:
        app(prog_name=os.environ.get("DSD_PROGRAM", "python -m dsd_core"))
    except DsdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _print_score(score: Score) -> None:
    """A line of means, then one for each class: IoU, accuracy, and boundary IoU where it was computed."""
    columns = {
        "mIoU": (score.miou, score.per_class_iou),
        "class accuracy": (score.class_accuracy, score.per_class_accuracy),
        "boundary IoU": (score.boundary_iou, score.per_class_boundary_iou),
    }
    shown = {title: column for title, column in columns.items() if column[1]}
    print(f"pixel accuracy {_figure(score.pixel_accuracy)}")
    print(f"{'':20}" + "".join(f"{title:>16}" for title in shown))
    print(f"{'mean':20}" + "".join(f"{_figure(mean):>16}" for mean, _ in shown.values()))
    for name in score.per_class_iou:
        print(f"{name:20}" + "".join(f"{_figure(values[name]):>16}" for _, values in shown.values()))


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise SpecError(f"{text!r} is not a size.", hint="Write HEIGHTxWIDTH, such as 240x320.")
    return int(height), int(width)


if __name__ == "__main__":
    main()
