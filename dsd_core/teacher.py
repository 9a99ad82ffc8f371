"""Networks that exist already, loaded with their preprocessing; above all the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dsd_core.errors import SpecError
from dsd_core.models import build, load_weights, outputs_in, stride
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec, Preprocess
from dsd_core.spec import Student, Teacher
from dsd_core.weights import describe_onnx, describe_weights, fitting_outputs


def load_segmenter(
    weights: Path,
    network: NetworkSpec,
    preprocess: Preprocess,
    classes: Sequence[str] | None,
    *,
    field: str = "/teacher/weights",
) -> Segmenter:
    """The network with its weights, in eval mode, giving logits of these classes (None: of all outputs).

    Raises SpecError for other classes, WeightsError for a file that does not fit the network.
    """
    outputs = outputs_in(weights, network, field=field)
    if classes is not None:
        fitting_outputs(weights, network, classes, field=field)
    module = build(network.model_copy(update={"encoder_weights": None}), outputs)
    load_weights(module, weights, field=field)
    kept = outputs if classes is None else len(classes)
    return Segmenter(module, preprocess, kept, stride(network)).eval()


def load_teacher(
    teacher: Teacher, classes: Sequence[str], weights: Path | None = None, *, sizes: Sequence[tuple[int, int]] = ()
) -> tuple[Segmenter, NetworkSpec | None, str]:
    """The teacher, its network's spec where it has one, and the sha256 of its file.

    `weights` stands in for the spec's source, such as a registered model's file; `sizes` are those of the images it
    will see. Raises SpecError, WeightsError.
    """
    if weights is None and teacher.onnx is not None:
        return load_onnx(teacher, classes, sizes)
    if weights is None and teacher.zoo is not None:
        from dsd_core.models.zoo_teachers import load_zoo_teacher  # importing the zoo takes seconds

        return load_zoo_teacher(teacher.zoo, classes)
    path = weights or _named_file(teacher, "/teacher")
    network, preprocess = describe_weights(path, teacher.network, teacher.preprocess)
    return load_segmenter(path, network, preprocess, classes), network, _sha256(path)


def load_student(
    student: Student, classes: Sequence[str], weights: Path | None = None
) -> tuple[Segmenter, NetworkSpec, Preprocess, str]:
    """The trained student of an evaluate or export job, its network, preprocessing, and the sha256 of its file.

    `weights` stands in for the spec's source. Raises SpecError, WeightsError.
    """
    path = weights or _named_file(student, "/student")
    network, preprocess = describe_weights(path, student.network, student.preprocess, field="/student")
    segmenter = load_segmenter(path, network, preprocess, classes, field="/student/weights")
    return segmenter, network, preprocess, _sha256(path)


def _named_file(source: Teacher | Student, field: str) -> Path:
    if source.weights is not None:
        return Path(source.weights)
    kind = "model" if source.model is not None else "job"
    described = "registered model" if kind == "model" else "student of job"
    raise SpecError(
        f"The {described} {getattr(source, kind)!r} was not fetched.",
        field=f"{field}/{kind}",
        hint=f"Without the service, give its file as {field}/weights or with --{field[1:]} FILE.",
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_onnx(
    teacher: Teacher, classes: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> tuple[Segmenter, None, str]:
    """The teacher in an ONNX file. A graph that takes 8-bit pixels has its preprocessing inside; others say it in the
    spec or beside the file. Raises SpecError, WeightsError."""
    from dsd_core.models.onnx_teacher import open_onnx_teacher

    path = Path(str(teacher.onnx))
    network, padded_to, digest = open_onnx_teacher(path, len(classes), output=teacher.output, taps=teacher.taps)
    for size in sizes:
        network.refuse_other_size(size)
    preprocess = describe_onnx(path, teacher.preprocess, classes, takes_bytes=network.images.takes_bytes)
    return Segmenter(network, preprocess, len(classes), padded_to).eval(), None, digest
