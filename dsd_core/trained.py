"""Jobs on a student that was trained before: `evaluate` scores it, `export` also writes its files anew.

Both are short and have no checkpoint: one that is stopped starts again from the first image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dsd_core.check import refuse_unlabelled
from dsd_core.cores import usable_cores
from dsd_core.data import Dataset, open_dataset
from dsd_core.data.loader import cached
from dsd_core.data.scan import scan
from dsd_core.evaluate import score_split
from dsd_core.events import Event, Note, Result, Score, Started
from dsd_core.export import Exported, code_version, export_student, fixed_size_warning, measure_cost, write_result
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec, Preprocess
from dsd_core.pulse import Pulse, read_on
from dsd_core.spec import JobSpec
from dsd_core.teacher import load_student


@dataclass(frozen=True)
class Trained:
    """A trained student and the validation split it is held against."""

    segmenter: Segmenter
    network: NetworkSpec
    preprocess: Preprocess
    digest: str  # sha256 of its file
    val_set: Dataset
    device: torch.device


def evaluate_student(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    *,
    weights: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Score the student on the validation split. `weights` stands in for the spec's source, such as a registered
    model's file.

    Raises DsdError; Interrupted after `stop()` turned true.
    """
    trained, score = _scored(spec, out, emit, weights, stop)
    return _finish(trained, spec, out, score, None)


def export_again(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    *,
    weights: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Score the student where the validation split has labels, and write its files to `out`/student, verified.

    As `evaluate_student` in everything else.
    """
    trained, score = _scored(spec, out, emit, weights, stop)
    exported = export_student(
        trained.segmenter,
        trained.network,
        trained.preprocess,
        out / "student",
        classes=trained.val_set.classes,
        palette=trained.val_set.palette,
        size=trained.val_set.size,
        options=spec.export,
        about={
            "name": spec.name,
            "dataset": spec.dataset.name,
            "scores": {"student": score.model_dump()},
            **_lineage(trained, spec),
        },
    )
    if exported.fixed_size:
        emit(fixed_size_warning(trained.val_set.size))
    return _finish(trained, spec, out, score, exported)


def _scored(
    spec: JobSpec, out: Path, emit: Callable[[Event], None], weights: Path | None, stop: Callable[[], bool]
) -> tuple[Trained, Score]:
    pulse = Pulse(out / "pulse")

    def goes_on() -> bool:
        pulse()
        return not stop()

    trained = _open(spec, weights, partial(read_on, pulse, stop))
    emit(
        Started(
            spec_digest=spec.digest(),
            code_version=code_version(),
            device=str(trained.device),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            total_steps=0,
            dataset_fingerprint=trained.val_set.fingerprint(),
        )
    )
    if not trained.val_set.labelled:
        emit(Note(level="warning", message="The validation images have no labels: the student is not scored."))
    score = score_split(
        trained.segmenter, trained.val_set, spec.evaluate, emit, goes_on, trained.device, subject="student"
    )
    return trained, score


def _open(spec: JobSpec, weights: Path | None, tell: Callable[[int], None]) -> Trained:
    """Everything that can fail within seconds: the split is read once, and the student loaded."""
    torch.set_num_threads(spec.train.threads or usable_cores())
    torch.backends.cudnn.benchmark = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = spec.dataset
    val_set = cached(open_dataset(data.name, data.root, "val", data.size))
    refuse_unlabelled(spec, val_set)
    scan(val_set, tell=tell)
    segmenter, network, preprocess, digest = load_student(spec.student, val_set.classes, weights)
    return Trained(segmenter.to(device), network, preprocess, digest, val_set, device)


def _finish(trained: Trained, spec: JobSpec, out: Path, score: Score, exported: Exported | None) -> Result:
    size, classes = trained.val_set.size, trained.val_set.classes
    result = Result(
        student=score,
        student_cost=measure_cost(trained.segmenter, trained.network, len(classes), size),
        files=[] if exported is None else exported.files,
        classes=list(classes),
        onnx_max_error=None if exported is None else exported.onnx_max_error,
        train_seconds=0.0,
        floor=spec.evaluate.floor,
        beats_floor=score.miou is not None and score.miou >= spec.evaluate.floor,
        **_lineage(trained, spec),
    )
    write_result(out, result)
    return result


def _lineage(trained: Trained, spec: JobSpec) -> dict[str, Any]:
    return {
        "student_digest": trained.digest,
        "dataset_fingerprint": trained.val_set.fingerprint(),
        "spec_digest": spec.digest(),
        "code_version": code_version(),
    }
