"""Published networks teach: their files are checked, converted and loaded as any other, and their classes compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision.models.segmentation as torchvision_zoo
from safetensors.torch import save_file
from torch import nn

from dsd_core.check import check
from dsd_core.errors import SpecError, WeightsError
from dsd_core.models import build, default_taps, head_taps
from dsd_core.models.taps import Taps
from dsd_core.models.zoo_names import VOC, ZOO_TEACHERS, check_zoo_teacher
from dsd_core.models.zoo_teachers import hub_network, load_zoo_teacher, torchvision_network
from dsd_core.network_spec import DECODERS
from dsd_core.spec import Teacher, parse_spec
from dsd_core.teacher import load_teacher
from tests.core.small import CLASSES, small_spec

FROM_TORCHVISION = [name for name, entry in ZOO_TEACHERS.items() if entry.source == "torchvision"]


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_the_table_is_torchvisions_own(name: str) -> None:
    entry = ZOO_TEACHERS[name]
    weights = getattr(torchvision_zoo, entry.weights).COCO_WITH_VOC_LABELS_V1
    assert [known.replace("__", "") for known in weights.meta["categories"]] == list(VOC) == list(entry.class_names)
    transforms = weights.transforms()
    torch.testing.assert_close(torch.tensor(transforms.mean) * 255, torch.tensor(entry.preprocess.mean))
    torch.testing.assert_close(torch.tensor(transforms.std) * 255, torch.tensor(entry.preprocess.std))
    assert torchvision_zoo.__dict__[name]


def saved(network: nn.Module, path: Path) -> Path:
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_a_file_of_torchvision_fills_the_network_and_its_stages_are_tapped(name: str, tmp_path: Path) -> None:
    source = getattr(torchvision_zoo, name)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    network, spec = torchvision_network(name, 21, saved(source, tmp_path / "w.safetensors"))
    assert spec.name == name
    image = torch.randn(1, 3, 64, 96)
    stages, head = default_taps(network.eval()), head_taps(network)[-2:]
    with Taps(network, (*stages, *head)) as taps, torch.no_grad():
        torch.testing.assert_close(network(image), source(image)["out"])
        *features, feature, logits = taps.features()
    assert len(features) >= 3 and [f.shape[3] for f in features] == sorted((f.shape[3] for f in features), reverse=True)
    assert logits.shape[1] == 21 and feature.shape[2:] == logits.shape[2:]


def test_a_downloaded_file_whose_hash_is_not_that_of_its_name_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "fcn_resnet50_coco-1167a1af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not the file that was published")
    with pytest.raises(WeightsError, match=r"sha256 starts with \w{8}, its name says 1167a1af") as caught:
        load_zoo_teacher("fcn_resnet50", VOC)
    assert caught.value.field == "/teacher/zoo" and caught.value.hint and file.exists()


ASK = "import sys; from dsd_core.models.zoo_teachers import load_zoo_teacher as load; load(sys.argv[1], sys.argv[2:])"


@pytest.mark.parametrize(
    ("name", "classes", "place"),
    [("fcn_resnet50", VOC, "fcn_resnet50_coco-1167a1af.pth"), ("upernet_convnext_tiny", range(150), "HF_HOME")],
)
def test_a_failed_download_says_where_the_file_may_be_put(
    name: str, classes: Sequence[object], place: str, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:9"  # nothing answers there, whatever network the machine has
    environment = {"TORCH_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "https_proxy": nowhere}
    command = [sys.executable, "-c", ASK, name, *map(str, classes)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100)
    last = done.stderr.strip().splitlines()[-1]
    assert "WeightsError" in last and "could not be downloaded" in last and place in last


def test_a_published_network_of_the_hub_is_rebuilt_from_its_config(tmp_path: Path) -> None:
    source = build("upernet:resnet18", 6).eval()
    source.save_pretrained(tmp_path)  # type: ignore[operator]  # as those on the hub were written
    network, spec = hub_network(tmp_path / "config.json", tmp_path / "model.safetensors", 6)
    assert str(spec) == "upernet:resnet18" and spec.name in DECODERS
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), source(image))
    (tmp_path / "config.json").write_text('{"_model_class": "Other"}')
    with pytest.raises(WeightsError, match="says no network"):
        hub_network(tmp_path / "config.json", tmp_path / "model.safetensors", 6)


def test_a_zoo_teacher_of_other_classes_is_refused_before_the_job_is_queued() -> None:
    spec = small_spec(None).model_dump(exclude={"losses"})
    job = parse_spec(spec | {"kind": "distill", "teacher": {"zoo": "fcn_resnet50"}})
    for read in (lambda: check(job), lambda: load_teacher(Teacher(zoo="fcn_resnet50"), CLASSES)):
        with pytest.raises(SpecError, match=r"knows 21 classes \(background, .*the dataset has 11") as caught:
            read()
        assert caught.value.field == "/teacher/zoo"


def test_an_unknown_zoo_teacher_is_refused_with_near_names() -> None:
    with pytest.raises(SpecError, match="no network in the zoo of teachers") as caught:
        check_zoo_teacher("deeplab_resnet101", VOC)
    assert "deeplabv3_resnet101" in str(caught.value.hint)


def test_classes_are_compared_without_what_spellings_differ_in() -> None:
    spelt = ["__background__", *VOC[1:16], "Potted Plant", *VOC[17:]]
    assert check_zoo_teacher("fcn_resnet50", spelt).classes == 21
    with pytest.raises(SpecError):
        check_zoo_teacher("fcn_resnet50", [*VOC[1:], VOC[0]])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "exactly one of"),
        ({"weights": "a", "onnx": "b"}, "exactly one of"),
        ({"zoo": "fcn_resnet50", "preprocess": {}}, "brings its preprocessing"),
        ({"onnx": "a", "network": "espnet"}, "brings its network"),
        ({"weights": "a", "output": "logits"}, "give it with `onnx`"),
    ],
)
def test_a_teacher_has_one_source_and_only_what_goes_with_it(fields: dict[str, object], said: str) -> None:
    spec = small_spec(None).model_dump(exclude={"losses"})
    with pytest.raises(SpecError, match=said):
        parse_spec(spec | {"kind": "distill", "teacher": fields})
