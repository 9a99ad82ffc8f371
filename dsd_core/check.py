"""What can be known about a job before it is queued, without torch: names, files, labels, classes.

What needs torch (tap names, every tensor of the weights, the teacher's score) is step 0 of the run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from dsd_core.data import Dataset, open_dataset
from dsd_core.data.scan import Scan, remarks, scan
from dsd_core.errors import DataError, SpecError
from dsd_core.legs import legs
from dsd_core.models.names import check_network
from dsd_core.models.onnx_header import check_onnx_file
from dsd_core.models.weights_header import shapes_in
from dsd_core.models.zoo_names import check_zoo_teacher
from dsd_core.network_spec import NetworkSpec, Preprocess
from dsd_core.signals.plan import expected, plan_of, rough_bytes
from dsd_core.spec import JobSpec, Student
from dsd_core.weights import describe_weights, fitting_outputs

LONGEST_NAME = 255  # bytes, on the file systems in use


@dataclass(frozen=True)
class Finding:
    """Something worth knowing that does not stop the job; `field` is a JSON pointer into the spec."""

    level: Literal["info", "warning"]
    field: str
    message: str


@dataclass(frozen=True)
class Checked:
    """The spec as it will run, what was found, and what it will take."""

    spec: JobSpec
    findings: list[Finding] = field(default_factory=list)
    estimates: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "spec": self.spec.model_dump(mode="json"),
            "digest": self.spec.digest(),
            "findings": [asdict(finding) for finding in self.findings],
            "estimates": self.estimates,
        }


def check(spec: JobSpec, *, budget_s: float = 2.0, data_roots: Sequence[Path] = (), service: bool = False) -> Checked:
    """Raise SpecError, DataError or WeightsError for what makes the job impossible; else say what was found.

    At most `budget_s` seconds go into reading images. With `service`, paths must be absolute, and lie below one of
    `data_roots` where there are any.
    """
    for pointer, path in _paths(spec).items():
        _check_path(path, pointer, data_roots, service)
    return _check_training(spec, budget_s) if spec.trains else _check_trained(spec, budget_s)


def _check_training(spec: JobSpec, budget_s: float) -> Checked:
    network, _ = spec.student.architecture
    check_network(network, field="/student/network")
    data = spec.dataset
    train = open_dataset(data.name, data.root, "train", data.size)
    val = open_dataset(data.name, data.root, "val", data.size)
    findings = [*_check_weights(spec, train.classes), *_check_view(spec, train)]
    for split in (train, val):
        scanned, said = _check_images(spec, split, budget_s / 2)
        if split is train and scanned is not None:
            refuse_unfit_images(spec, train, scanned)
        findings += said
    return Checked(spec, findings, _estimate(spec, train, val), train.classes)


def _check_trained(spec: JobSpec, budget_s: float) -> Checked:
    """Of a job on a student that was trained; the files of a registered model or another job are not looked at."""
    student, data, findings = spec.student, spec.dataset, []
    val = open_dataset(data.name, data.root, "val", data.size)
    refuse_unlabelled(spec, val)
    if student.weights is not None:
        path = Path(student.weights)
        network, preprocess = describe_weights(path, student.network, student.preprocess, field="/student")
        findings += _described("student", path, network, preprocess, val.classes)
    elif student.network is not None:
        check_network(student.network, field="/student/network")
    _, said = _check_images(spec, val, budget_s)
    return Checked(spec, findings + said, _estimate(spec, None, val), val.classes)


def _check_images(spec: JobSpec, split: Dataset, budget_s: float) -> tuple[Scan | None, list[Finding]]:
    """What was read of a split, and what is worth knowing of it; None where it is generated and has no bad files."""
    if spec.dataset.root is None:
        return None, []
    scanned = scan(split, budget_s=budget_s)
    findings = [Finding("warning", "/dataset", remark) for remark in remarks(split, scanned)]
    if not scanned.complete:
        read = f"{scanned.images} of {len(split)} images of the split {split.split} were read; the run reads all."
        findings.append(Finding("info", "/dataset", read))
    return scanned, findings


def refuse_unlabelled(spec: JobSpec, val: Dataset) -> None:
    """Raise DataError where an evaluate job has nothing to score on."""
    if spec.kind == "evaluate" and not val.labelled:
        raise DataError(
            "The validation images have no labels, so there is nothing to score the student on.",
            field="/dataset",
            hint="Give a dataset with labels, or kind: export, which writes the files all the same.",
        )


def refuse_unfit_images(spec: JobSpec, train: Dataset, scanned: Scan) -> None:
    """Raise SpecError where the job's losses or views cannot do with these training images."""
    labelled = [loss.term for loss in spec.losses if loss.uses_labels]
    if labelled and not train.labelled:
        raise SpecError(
            f"The training images have no labels, which the loss {', '.join(labelled)} needs.",
            field="/losses",
            hint=f"Leave {', '.join(labelled)} out; ce can also take the teacher's predictions (`labels: teacher`).",
        )
    if not train.labelled and any(loss.needs_class_shares for loss in spec.losses):
        raise SpecError(
            "The training images have no labels, so the shares of the classes for `class_weights: log` are unknown.",
            field="/losses",
            hint="Leave class_weights out.",
        )
    if len(scanned.sizes) > 1 and spec.train.augment.crop is None:
        (first, second), *_ = combinations(scanned.sizes, 2)
        raise SpecError(
            f"The training images differ in size ({first[0]}x{first[1]} and {second[0]}x{second[1]} among them), and "
            "views of one size are needed.",
            field="/train/augment/crop",
            hint="Set train.augment.crop to the (height, width) of a view, or dataset.size to bring all to one size.",
        )


def _paths(spec: JobSpec) -> dict[str, str]:
    named = {
        "/dataset/root": spec.dataset.root,
        "/student/weights": spec.student.weights,
        "/student/encoder_file": spec.student.encoder_file,
        "/teacher/weights": spec.teacher.weights if spec.teacher else None,
        "/teacher/onnx": spec.teacher.onnx if spec.teacher else None,
    }
    return {pointer: path for pointer, path in named.items() if path is not None}


def _check_path(text: str, pointer: str, data_roots: Sequence[Path], service: bool) -> None:
    path = Path(text)
    if "\0" in text or any(len(part.encode(errors="surrogateescape")) > LONGEST_NAME for part in path.parts):
        raise SpecError(
            f"{pointer} is not a path.",
            field=pointer,
            hint=f"A name has at most {LONGEST_NAME} bytes, none is zero.",
        )
    if service and not path.is_absolute():
        raise SpecError(
            f"{text!r} is a relative path.", field=pointer, hint="Give the absolute path on the workers' machine."
        )
    if data_roots and not any(path.resolve().is_relative_to(root.resolve()) for root in data_roots):
        allowed = ", ".join(map(str, data_roots))
        raise SpecError(
            f"{text} lies outside the folders this service may read.", field=pointer, hint=f"Allowed: {allowed}."
        )


def _check_weights(spec: JobSpec, classes: tuple[str, ...]) -> list[Finding]:
    findings = []
    _check_start(spec.student, classes)
    if spec.teacher is not None and spec.teacher.onnx is not None:
        check_onnx_file(Path(spec.teacher.onnx))
        findings.append(Finding("info", "/teacher/onnx", "The graph is tried on an image when the run starts."))
    if spec.teacher is not None and spec.teacher.zoo is not None:
        entry = check_zoo_teacher(spec.teacher.zoo, classes)
        findings.append(Finding("info", "/teacher/zoo", f"Trained on {entry.dataset}; licence {entry.licence}."))
    if spec.teacher is not None and spec.teacher.weights is not None:
        path = Path(spec.teacher.weights)
        network, preprocess = describe_weights(path, spec.teacher.network, spec.teacher.preprocess)
        findings += _described("teacher", path, network, preprocess, classes)
    return findings


def _described(
    who: str, path: Path, network: NetworkSpec, preprocess: Preprocess, classes: tuple[str, ...]
) -> list[Finding]:
    """What a weights file was taken for. Raises SpecError where it has other classes."""
    outputs = fitting_outputs(path, network, classes, field=f"/{who}/weights")
    pixels = f"pixels are taken in order {preprocess.order}, mean {preprocess.mean}, std {preprocess.std}."
    findings = [Finding("info", f"/{who}", f"The {who} is {network}; {pixels}")]
    if outputs != len(classes):
        void = f"Its last output (of {outputs}) is taken as void and left out."
        findings.append(Finding("info", f"/{who}/weights", void))
    return findings


def _check_start(student: Student, classes: tuple[str, ...]) -> None:
    """The header of the file that the student starts from; with a share below 1 its classes may be others."""
    if student.encoder_file is not None:
        shapes_in(Path(student.encoder_file), field="/student/encoder_file")
    if student.weights is not None and student.weights_share < 1:
        shapes_in(Path(student.weights), field="/student/weights")
    elif student.weights is not None:
        network, _ = student.architecture
        fitting_outputs(Path(student.weights), network, classes, field="/student/weights")


def _check_view(spec: JobSpec, train: Dataset) -> list[Finding]:
    findings = []
    if len(train) < spec.train.batch:
        findings.append(
            Finding(
                "warning",
                "/train/batch",
                f"The batch ({spec.train.batch}) is larger than the training split ({len(train)} images).",
            )
        )
    if spec.evaluate.every_epochs > spec.train.epochs:
        findings.append(Finding("info", "/evaluate/every_epochs", "The student is scored only once, at the end."))
    return findings


def _estimate(spec: JobSpec, train: Dataset | None, val: Dataset) -> dict[str, Any]:
    """Counts of the whole job; without `train` nothing is trained."""
    images = 0 if train is None else len(train)
    steps = 0 if train is None else len(legs(spec)) * spec.train.epochs * max(images // spec.train.batch, 1)
    height, width = size = (train or val).size
    plan, signals = plan_of(spec), {}
    if plan is not None:
        # With an empty store; the run says what is there, and exact sizes, before its first step.
        records = plan.looks * images
        asked = expected(plan, spec, images, records)
        signals = {
            "signals": plan.kind,
            "signals_records": records,
            "signals_bytes": rough_bytes(plan, spec, images, size, len(val.classes)),
            "signals_hit_rate": round(asked["hit_rate"], 4),
            "teacher_passes": int(asked["teacher_passes"]),
            "teacher_passes_in_loop": int(asked["passes_in_loop"]),
        }
    return {
        "train_images": images,
        "val_images": len(val),
        "classes": len(val.classes),
        "steps": steps,
        "views": steps * spec.train.batch,
        "decoded_bytes": (images + len(val)) * height * width * 4,
        **signals,
    }
