"""Segmentation networks with published weights that may teach, by name. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsd_core.errors import SpecError, unknown
from dsd_core.network_spec import Preprocess

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class ZooTeacher:
    """Where a network comes from and what it knows. `weights` names torchvision's set, or a repository of the hub."""

    source: Literal["torchvision", "smp"]
    weights: str
    dataset: str
    classes: int
    class_names: tuple[str, ...]
    """In the order of the outputs; empty where the data set's own order is all that is known."""
    licence: str
    preprocess: Preprocess = field(default_factory=Preprocess)


def _torchvision(weights: str) -> ZooTeacher:
    return ZooTeacher("torchvision", weights, "COCO images of the Pascal VOC classes", 21, VOC, "BSD-3-Clause")


def _smp(repository: str) -> ZooTeacher:
    return ZooTeacher("smp", repository, "ADE20K", 150, (), "MIT")


ZOO_TEACHERS = {
    "fcn_resnet50": _torchvision("FCN_ResNet50_Weights"),
    "fcn_resnet101": _torchvision("FCN_ResNet101_Weights"),
    "deeplabv3_resnet50": _torchvision("DeepLabV3_ResNet50_Weights"),
    "deeplabv3_resnet101": _torchvision("DeepLabV3_ResNet101_Weights"),
    "deeplabv3_mobilenet_v3_large": _torchvision("DeepLabV3_MobileNet_V3_Large_Weights"),
    "upernet_convnext_tiny": _smp("smp-hub/upernet-convnext-tiny"),
    "upernet_convnext_large": _smp("smp-hub/upernet-convnext-large"),
    "upernet_swin_large": _smp("smp-hub/upernet-swin-large"),
}


def check_zoo_teacher(name: str, classes: Sequence[str]) -> ZooTeacher:
    """The entry of this name. Raises SpecError where there is none, or it knows other classes than these in order."""
    if name not in ZOO_TEACHERS:
        raise unknown("network in the zoo of teachers", name, ZOO_TEACHERS, field="/teacher/zoo")
    entry = ZOO_TEACHERS[name]
    names = [_plain(known) for known in entry.class_names]
    if len(classes) != entry.classes or (names and names != [_plain(known) for known in classes]):
        raise SpecError(
            f"{name} was trained on {entry.dataset} and knows {entry.classes} classes ({_some(entry.class_names)}); "
            f"the dataset has {len(classes)} ({_some(classes)}).",
            field="/teacher/zoo",
            hint="Take a dataset with these classes, or train a teacher of your own first with a job of kind train.",
        )
    return entry


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:25]) or "in the data set's own order"


def _plain(name: str) -> str:
    """A class's name without what spellings differ in, such as `__background__` and `potted plant`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
