"""A network in an ONNX file teaches as the same network in torch does, whatever its layout, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

from dsd_core.check import check
from dsd_core.errors import DsdError, Interrupted, SpecError, WeightsError
from dsd_core.events import Checkpoint, Progress
from dsd_core.learner import build_learner
from dsd_core.models import build, default_taps, head_taps
from dsd_core.models.frozen import Frozen
from dsd_core.models.onnx_graph import write_onnx
from dsd_core.models.onnx_teacher import OnnxTeacher, open_onnx_teacher
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.network_spec import Preprocess, network_spec
from dsd_core.spec import Teacher, parse_spec
from dsd_core.teacher import load_teacher
from dsd_core.train import fit, train
from tests.core.onnx_files import Small, Then, export
from tests.core.small import CLASSES, TINY, save_teacher, small_spec

K = len(CLASSES)
ZERO_ONE = {"mean": [0, 0, 0], "std": [255, 255, 255]}
ESPNET_STAGES = {
    "encoder.level1": "/encoder/level1/act/PRelu_output_0",
    "encoder.level2": "/encoder/level2/level2.0/bn/act/PRelu_output_0",
    "encoder.level3": "/encoder/level3/level3.0/bn/act/PRelu_output_0",
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same teacher twice: as safetensors, and exported to ONNX with its preprocessing in a .json beside it."""
    folder = tmp_path_factory.mktemp("twins")
    weights = save_teacher(folder)
    network = load_teacher(Teacher(weights=str(weights)), CLASSES)[0].network
    graph = export(network, folder / "graph.onnx")
    graph.with_suffix(".json").write_text(json.dumps({"preprocess": "zero_one"}))
    return weights, graph


def onnx_spec(graph: Path, **changes: Any) -> Any:
    spec = small_spec(None).model_dump(exclude={"losses"})
    spec |= {"kind": "distill", "losses": "dsd_kd", "teacher": {"onnx": str(graph), "floor": 0.0, **changes}}
    return parse_spec(spec)


def opened(network: torch.nn.Module, folder: Path, **how: Any) -> OnnxTeacher:
    asked = {name: how.pop(name) for name in ("output", "taps") if name in how}
    return open_onnx_teacher(export(network, folder / "graph.onnx", **how), 5, **asked)[0]


def refused(kind: type[DsdError], network: torch.nn.Module, folder: Path, **how: Any) -> DsdError:
    with pytest.raises(kind) as caught:
        opened(network, folder, **how)
    assert caught.value.hint and caught.value.field
    return caught.value


def images(count: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def at_image_size(logits_NKHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits_NKHW, size=size, mode="bilinear", align_corners=False)


def test_logits_and_features_are_those_of_the_same_network_in_torch(twins: tuple[Path, Path]) -> None:
    weights, graph = twins
    ours = load_teacher(Teacher(weights=str(weights)), CLASSES)[0]
    theirs, network, _ = load_teacher(Teacher(onnx=str(graph), taps=tuple(ESPNET_STAGES.values())), CLASSES)
    assert network is None
    pixels = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with Taps(ours.network, ESPNET_STAGES) as here, Taps(theirs.network, ESPNET_STAGES.values()) as there:
        torch.testing.assert_close(theirs(pixels), ours(pixels), rtol=1e-4, atol=1e-4)
        for feature, expected in zip(there.features(), here.features(), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_first_losses_are_those_with_the_same_teacher_in_torch(twins: tuple[Path, Path], tmp_path: Path) -> None:
    weights, graph = twins
    found = []
    for spec in (
        small_spec(weights, teacher__taps=list(ESPNET_STAGES), train__epochs=1),
        onnx_spec(graph, taps=list(ESPNET_STAGES.values())),
    ):
        events: list[Any] = []
        train(spec, tmp_path / str(len(found)), events.append)
        found.append([event.losses for event in events if isinstance(event, Progress)][:2])
    for ours, theirs in zip(*found, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_with_an_onnx_teacher_ends_with_the_same_bits(
    twins: tuple[Path, Path], tmp_path: Path
) -> None:
    spec = onnx_spec(twins[1])
    whole = fit(spec, tmp_path / "whole", lambda event: None)
    stopping: list[Any] = []

    def note(event: Any) -> None:
        if isinstance(event, Progress) and event.step == 3:
            stopping.append(event)

    with pytest.raises(Interrupted):
        fit(spec, tmp_path / "broken", note, stop=lambda: bool(stopping))
    events: list[Any] = []
    again = fit(spec, tmp_path / "broken", events.append)
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [6]
    assert again.files[-1].sha256 == whole.files[-1].sha256  # of SHA256SUMS
    student = (tmp_path / side / "student" / "model.safetensors" for side in ("whole", "broken"))
    assert next(student).read_bytes() == next(student).read_bytes()
    assert whole.teacher is not None and whole.teacher_cost is None and whole.teacher_digest == again.teacher_digest


@pytest.mark.parametrize("name", ["fpn:resnet18", "unet:mobilenet_v2", "deeplabv3plus:resnet18"])
def test_stages_and_head_are_found_in_graphs_of_the_zoo(name: str, tmp_path: Path) -> None:
    network = build(name, 5).eval()
    theirs, stride, _ = open_onnx_teacher(export(network, tmp_path / "graph.onnx"), 5)
    assert 128 % stride == 0
    ours, stages = Taps(network, head_taps(network)), default_taps(theirs)
    with ours, Taps(theirs, (*stages, *head_taps(theirs))) as taps, torch.no_grad():
        x = images(1, (128, 192))
        torch.testing.assert_close(theirs(x), network(x), rtol=1e-3, atol=1e-3)
        *features, head, logits = taps.features()
        expected_head, expected_logits = ours.features()
    steps = [192 / feature.shape[3] for feature in features]
    assert steps == ([4, 8, 16] if name.startswith("deeplab") else [4, 8, 16, 32])
    torch.testing.assert_close(head, expected_head, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)


def test_logits_on_a_coarser_grid_are_brought_to_the_images_size(tmp_path: Path) -> None:
    network = Small(5)
    teacher = opened(network, tmp_path)
    with torch.no_grad():
        expected = at_image_size(network(images()), (64, 96))
    torch.testing.assert_close(teacher(images()), expected, rtol=1e-4, atol=1e-4)


def test_probabilities_become_their_logarithm(tmp_path: Path) -> None:
    network = Small(5)
    teacher = opened(Then(network, after=lambda logits: logits.softmax(1)), tmp_path)
    with torch.no_grad():
        expected = at_image_size(network(images()).log_softmax(1), (64, 96))
    torch.testing.assert_close(teacher(images()), expected, rtol=1e-4, atol=1e-4)


def test_channels_last_on_both_sides_is_recognised(tmp_path: Path) -> None:
    network = Small(5)
    wrapped = Then(network, before=lambda x: x.permute(0, 3, 1, 2), after=lambda y: y.permute(0, 2, 3, 1))
    teacher = opened(wrapped, tmp_path, image=torch.zeros(1, 64, 96, 3), free={0: "N", 1: "H", 2: "W"})
    with torch.no_grad():
        expected = at_image_size(network(images()), (64, 96))
    torch.testing.assert_close(teacher(images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_graph_of_fixed_batch_runs_any_number_of_images(batch: int, tmp_path: Path) -> None:
    network = Small(5)
    teacher = opened(network, tmp_path, image=torch.zeros(batch, 3, 64, 96), free={2: "H", 3: "W"})
    with Taps(teacher, default_taps(teacher)) as taps, torch.no_grad():
        expected = at_image_size(network(images(6)), (64, 96))
        torch.testing.assert_close(teacher(images(6)), expected, rtol=1e-4, atol=1e-4)
        assert [len(feature) for feature in taps.features()] == [6, 6]


def test_a_graph_of_half_precision_takes_and_gives_float32(tmp_path: Path) -> None:
    network = Small(5)
    wrapped = Then(network, before=lambda x: x.float(), after=lambda y: y.half())
    teacher = opened(wrapped, tmp_path, image=torch.zeros(1, 3, 64, 96, dtype=torch.float16))
    found = teacher(images())
    assert found.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, at_image_size(network(images()), (64, 96)), rtol=1e-2, atol=1e-2)


def test_an_exported_student_teaches_with_the_preprocessing_inside_it(tmp_path: Path) -> None:
    segmenter = Segmenter(build(network_spec(TINY), K), Preprocess(order="BGR"), K, 8).eval()
    write_onnx(segmenter, tmp_path / "model.onnx")
    teacher, _, _ = load_teacher(Teacher(onnx=str(tmp_path / "model.onnx")), CLASSES)
    pixels = torch.randint(0, 256, (2, 3, 61, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(teacher(pixels), segmenter(pixels), rtol=1e-4, atol=1e-4)
    assert len(default_taps(teacher.network)) >= 2
    with pytest.raises(SpecError, match="preprocessing is inside") as caught:
        load_teacher(Teacher(onnx=str(tmp_path / "model.onnx"), preprocess=Preprocess()), CLASSES)
    assert caught.value.field == "/teacher/preprocess"


def test_a_void_output_is_left_out(tmp_path: Path) -> None:
    graph = export(Small(K + 1), tmp_path / "graph.onnx")
    teacher, _, _ = load_teacher(Teacher(onnx=str(graph), preprocess=Preprocess()), CLASSES)
    assert teacher(torch.zeros(1, 3, 32, 48, dtype=torch.uint8)).shape == (1, K, 32, 48)


def test_a_graph_that_ends_in_argmax_says_which_tensor_to_name(tmp_path: Path) -> None:
    network = Then(Small(5), after=lambda logits: logits.argmax(1))
    error = refused(SpecError, network, tmp_path)
    inner = "/network/head/Conv_output_0"
    assert "no logits" in error.message and f"teacher.output: {inner!r}" in str(error.hint)
    with torch.no_grad():
        expected = at_image_size(network.network(images()), (64, 96))
    torch.testing.assert_close(opened(network, tmp_path, output=inner)(images()), expected, rtol=1e-4, atol=1e-4)


def test_the_named_output_is_taken_among_several(tmp_path: Path) -> None:
    both = Then(Small(5), after=lambda logits: (logits * 0, logits))
    names = ["auxiliary", "main"]
    assert opened(both, tmp_path, outputs=names)(images()).abs().max() == 0
    assert opened(both, tmp_path, outputs=names, output="main")(images()).abs().max() > 0


def test_a_fixed_size_other_than_the_images_is_named_before_training(tmp_path: Path) -> None:
    graph = export(Small(K), tmp_path / "graph.onnx", free={0: "N"})
    spec = onnx_spec(graph, preprocess=ZERO_ONE)
    with pytest.raises(SpecError, match=r"64x96 only, and is given 32x48") as caught:
        train(spec, tmp_path / "run", lambda event: None)
    assert caught.value.field == "/teacher/onnx"
    assert opened(Small(5), tmp_path, free={0: "N"})(images()).shape == (2, 5, 64, 96)


def test_taps_that_do_not_exist_are_refused_with_near_ones(tmp_path: Path) -> None:
    error = refused(SpecError, Small(5), tmp_path, taps=["/quarter/quarter.1/Relu_output_1"])
    assert error.field == "/teacher/taps" and "/quarter/quarter.1/Relu_output_0" in str(error.hint)


def test_a_graph_without_stages_says_which_tensors_can_be_tapped(tmp_path: Path) -> None:
    teacher = opened(torch.nn.Conv2d(3, 5, 3, padding=1), tmp_path)
    with pytest.raises(SpecError, match="stages are not to be told") as caught:
        default_taps(teacher)
    assert "scores" in str(caught.value.hint)


def test_a_head_that_is_no_convolution_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    teacher = opened(Then(Small(5), after=lambda logits: logits.relu() + 1), tmp_path)
    with pytest.raises(SpecError, match="does not come from a convolution"):
        head_taps(teacher)


def test_other_classes_than_the_dataset_has_are_refused(tmp_path: Path) -> None:
    error = refused(SpecError, Small(9), tmp_path)
    assert "has 9 classes" in error.message and error.field == "/teacher/onnx"


def test_tensors_that_nobody_taps_are_not_fetched(tmp_path: Path) -> None:
    teacher = opened(Small(5), tmp_path)
    passed: list[str] = []
    name = default_taps(teacher)[0]
    handle = teacher.get_submodule(teacher.tap_modules[name]).register_forward_hook(lambda *_: passed.append(name))
    teacher(images())
    handle.remove()
    teacher(images())
    assert passed == [name]


def test_psd_compares_the_layers_of_an_onnx_teacher_and_a_student(twins: tuple[Path, Path]) -> None:
    spec = onnx_spec(twins[1])
    teacher = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    learner = build_learner(spec, spec.losses, teacher, K, torch.device("cpu"), None)
    learner.task.close()
    assert not list(teacher.parameters()) and not teacher.training


# --- files that cannot be trusted -------------------------------------------------------------------------------------


def broken_graph(folder: Path, **how: Any) -> Path:
    """A graph of one node over one external or inner tensor."""
    location, op, domain = how.get("location"), how.get("op", "Conv"), how.get("domain", "")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [5, 3, 1, 1], np.zeros(15, np.float32).tobytes(), raw=True)
    if location:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    node = helper.make_node(op, ["x", "w"], ["y"], domain=domain)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, "H", "W"]) for n, c in (("x", 3), ("y", 5)))
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    path = folder / "graph.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def reading_fails(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        open_onnx_teacher(path, 5)
    assert caught.value.field == "/teacher/onnx" and caught.value.hint and path.name in caught.value.message
    return caught.value


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "link.bin", "absent.bin"])
def test_tensors_outside_the_models_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 60)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "no file in its folder" in reading_fails(broken_graph(folder, location=location)).message


def test_tensors_in_a_file_beside_the_model_are_read_and_count_for_its_digest(tmp_path: Path) -> None:
    path = broken_graph(tmp_path, location="tensors.bin")
    (tmp_path / "tensors.bin").write_bytes(np.ones(15, np.float32).tobytes())
    teacher, _, digest = open_onnx_teacher(path, 5)
    torch.testing.assert_close(teacher(images()), images().sum(1, keepdim=True).expand(-1, 5, -1, -1))
    (tmp_path / "tensors.bin").write_bytes(np.zeros(15, np.float32).tobytes())
    assert open_onnx_teacher(path, 5)[2] != digest


def test_an_operator_that_onnxruntime_does_not_have_is_named(tmp_path: Path) -> None:
    assert "Launch" in reading_fails(broken_graph(tmp_path, op="Launch", domain="elsewhere")).message


@pytest.mark.parametrize("content", [b"", b"\x80\x04K", b"PK\3\4" + b"0" * 50, b"\x08\x0a" + b"\xff" * 64, b"\x08\x08"])
def test_a_file_that_is_no_onnx_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    reading_fails(tmp_path / "graph.onnx")


def test_a_model_cut_short_is_refused(tmp_path: Path) -> None:
    path = export(Small(5), tmp_path / "graph.onnx")
    path.write_bytes(path.read_bytes()[:-200])
    reading_fails(path)


def test_a_file_larger_than_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"\x08")
    with open(path, "r+b") as file:
        file.truncate(3_000_000_000)  # sparse: takes no room on the disk
    assert "at most 2000000000" in reading_fails(path).message


def test_a_missing_onnx_file_is_refused_before_the_job_is_queued(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no ONNX file .*none\.onnx") as caught:
        check(onnx_spec(tmp_path / "none.onnx"))
    assert caught.value.field == "/teacher/onnx"


def test_an_onnx_file_is_checked_for_being_there_and_said_to_be_tried_later(twins: tuple[Path, Path]) -> None:
    assert any(finding.field == "/teacher/onnx" for finding in check(onnx_spec(twins[1])).findings)
