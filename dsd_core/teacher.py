"""Networks that exist already, loaded with their preprocessing; above all the teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsd_core.errors import SpecError
from dsd_core.models import build, load_weights, stride
from dsd_core.models.segmenter import Segmenter
from dsd_core.spec import NetworkSpec, Preprocess, Teacher
from dsd_core.weights import describe_weights, fitting_outputs


def load_segmenter(
    weights: Path, network: NetworkSpec, preprocess: Preprocess, classes: int, *, field: str = "/teacher/weights"
) -> Segmenter:
    """The network with its weights, in eval mode, giving logits of the first `classes` outputs. Raises DsdError."""
    outputs = fitting_outputs(weights, network, classes, field=field)
    module = build(network.model_copy(update={"encoder_weights": None}), outputs)
    load_weights(module, weights, field=field)
    return Segmenter(module, preprocess, classes, stride(network)).eval()


def load_teacher(teacher: Teacher, classes: int, weights: Path | None = None) -> tuple[Segmenter, NetworkSpec, str]:
    """The teacher, its network's spec and the sha256 of its file; `weights` stands in for a registered model's file."""
    if weights is None and teacher.weights is None:
        raise SpecError(
            f"The registered model {teacher.model!r} was not fetched.",
            field="/teacher/model",
            hint="Without the service, name a file in /teacher/weights.",
        )
    path = weights or Path(str(teacher.weights))
    network, preprocess = describe_weights(path, teacher.network, teacher.preprocess)
    segmenter = load_segmenter(path, network, preprocess, classes)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return segmenter, network, digest
