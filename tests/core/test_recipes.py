"""The recipes are what their generator writes, and each can be built: networks, taps, and what its losses need."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path

import pytest
import torch

from dsd_core.distill.loss import Channels
from dsd_core.learner import choose_layers
from dsd_core.models.cost import count_params
from dsd_core.models.frozen import Frozen
from dsd_core.models.networks import build_meta, default_taps, head_taps, stride
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.network_spec import NetworkSpec, Preprocess
from dsd_core.spec import JobSpec, load_spec, parse_model
from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "recipes"
WRITTEN: dict[Path, str] = dict(runpy.run_path(str(FOLDER / "make.py"))["recipes"]())
RECIPES = {path: load_spec(path) for path in sorted(FOLDER.rglob("*.yaml"))}
CLASSES = {"cityscapes": 19, "camvid": 11, "ade20k": 150, "voc2012_aug": 21}
STUDENTS = ("pspnet_r18", "pspnet_r18_half", "espnet", "espnet_c", "enet", "deeplabv3plus:mobilenet_v2")
METHODS = {"kd", "at", "fitnet", "skd", "ifvd", "cwd", "cirkd", "dist", "dsd", "dsd_kd", "cirkd_dsd"}


@cache
def on_meta(network: str, classes: int) -> tuple[Segmenter, dict[str, int]]:
    """The network (JSON) without memory for its tensors, and the channels of its default and head taps."""
    spec = NetworkSpec.model_validate_json(network)
    module = build_meta(spec, classes)
    with Taps(module, (*default_taps(module), *head_taps(module))) as taps, torch.no_grad():
        module(torch.empty(1, 3, 64, 64, device="meta"))
        channels = {name: feature.shape[1] for name, feature in zip(taps.names, taps.features(), strict=True)}
    return Segmenter(module, Preprocess(), classes, stride(spec)).to("meta"), channels


def student_of(spec: JobSpec) -> tuple[Segmenter, dict[str, int]]:
    return on_meta(spec.student.network.model_dump_json(), CLASSES[spec.dataset.name])


def teacher_of(spec: JobSpec) -> JobSpec | None:
    """The recipe that trains the teacher."""
    if spec.teacher is None:
        return None
    assert spec.teacher.model is not None
    name, alias = parse_model(spec.teacher.model)
    assert alias == "latest-good"
    (found,) = (other for other in RECIPES.values() if other.name == name)
    return found


def test_the_recipes_are_what_their_generator_writes() -> None:
    assert {path: path.read_text() for path in RECIPES} == WRITTEN


def test_names_are_unique_and_say_dataset_and_file() -> None:
    assert [spec.name for spec in RECIPES.values()] == [f"{path.parent.name}-{path.stem}" for path in RECIPES]
    assert all(path.parent.name == spec.dataset.name for path, spec in RECIPES.items())


@pytest.mark.parametrize("dataset", CLASSES)
def test_each_dataset_has_every_method_and_every_compact_student(dataset: str) -> None:
    taught = {path.stem for path in (FOLDER / dataset).iterdir() if RECIPES[path].kind == "distill"}
    assert {f"pspnet_r101-pspnet_r18-{method}" for method in METHODS} < taught
    with_dsd = [RECIPES[FOLDER / dataset / f"{stem}.yaml"] for stem in taught if stem.endswith("-dsd")]
    assert {str(spec.student.network) for spec in with_dsd} == {*STUDENTS, "deeplabv3:resnet18"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_finds_the_layers_of_its_losses_in_networks_of_its_classes(path: Path) -> None:
    spec = RECIPES[path]
    teaching = teacher_of(spec)
    (student, of_student), (teacher, of_teacher) = student_of(spec), student_of(teaching or spec)
    layers = choose_layers(spec, spec.losses, student, Frozen(teacher) if teaching else None)
    found = (
        {kind: [widths[name] for name in names] for kind, names in chosen.items()}
        for chosen, widths in zip(layers, (of_student, of_teacher), strict=True)
    )
    channels = Channels(*found, student.classes)
    beside = {loss.term: loss.projection(channels) for loss in spec.losses}
    learning = {term for term, module in beside.items() if module is not None}
    assert learning == {"fitnet", "cwd-features"} & {loss.term for loss in spec.losses}
    assert teaching is None or count_params(teacher) > 3 * count_params(student)
