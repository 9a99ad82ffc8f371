"""Weights files that nobody vouches for: each is refused with the file, the reason and what to do, and nothing in it
runs."""

from __future__ import annotations

import collections
import json
import os
import pickle
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsd_core.check import check
from dsd_core.errors import SpecError, WeightsError
from dsd_core.learner import build_student
from dsd_core.models import build, load_weights
from dsd_core.models.pickles import convert
from dsd_core.models.unpickle import state_dict_in
from dsd_core.models.weights import load_encoder
from dsd_core.models.weights_header import HEADER_LIMIT_BYTES, shapes_in
from dsd_core.network_spec import network_spec
from dsd_core.spec import parse_spec
from dsd_core.teacher import load_teacher
from dsd_core.train import train
from tests.core.small import CLASSES, TINY, save_teacher, small_spec

State = dict[str, torch.Tensor]


class Bomb:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Gadget:
    """Asks `weights_only` for something that it allows to be named, to reach what it does not."""

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.OrderedDict, (), {"__class__": eval}


def pickle_bomb(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Bomb(canary)}, protocol=4))


def zip_bomb(path: Path, canary: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(3)}, "hook": Bomb(canary)}, path)


def gadget(path: Path, canary: Path) -> None:
    torch.save({"weight": Gadget()}, path)


def truncated_zip(path: Path, canary: Path) -> None:
    torch.save({"weight": torch.ones(100_000)}, path)
    path.write_bytes(path.read_bytes()[:50_000])


def expanded(path: Path, canary: Path) -> None:
    """One number that says it is 400 GB: a view of stride 0."""
    torch.save({"weight": torch.ones(1).expand(100_000_000_000)}, path)


def quantised(path: Path, canary: Path) -> None:
    torch.save({"weight": torch.ones(3, dtype=torch.int8)}, path)


PICKLES = [pickle_bomb, zip_bomb, gadget, truncated_zip, expanded, quantised]


def a_job(weights: Path) -> Any:
    spec = small_spec(None).model_dump(exclude={"losses"})
    teacher = {"weights": str(weights), "network": TINY, "preprocess": {}}
    return parse_spec(spec | {"kind": "distill", "teacher": teacher, "losses": "dsd"})


def refused(path: Path, read: Callable[[], Any]) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read()
    assert str(path) in caught.value.message and caught.value.hint
    return caught.value


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [pickle_bomb, zip_bomb, gadget])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_a_job_that_names_a_pickle_is_refused_before_and_in_the_run_with_how_to_convert_it(
    write: Callable[[Path, Path], None], suffix: str, tmp_path: Path
) -> None:
    path, canary = tmp_path / f"teacher{suffix}", tmp_path / "canary"
    write(path, canary)
    job = a_job(path)
    for read in (lambda: check(job), lambda: load_teacher(job.teacher, CLASSES)):
        error = refused(path, read)
        assert error.field == "/teacher/weights" and "dsd weights convert" in str(error.hint)
    assert not canary.exists()


@pytest.mark.parametrize("write", PICKLES)
def test_the_converter_runs_nothing_and_says_why_it_refuses(
    write: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    path, canary, out = tmp_path / "teacher.pt", tmp_path / "canary", tmp_path / "teacher.safetensors"
    write(path, canary)
    error = refused(path, lambda: convert(path, out))
    assert not canary.exists() and not out.exists()
    assert sorted(tmp_path.iterdir()) == [path], "no file is left behind"
    assert "weights_only" not in error.message, "torch's advice to read it unsafely is not passed on"


def test_an_exported_program_is_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt2"
    zip_bomb(path, tmp_path / "canary")
    for read in (lambda: check(a_job(path)), lambda: convert(path, tmp_path / "w.safetensors")):
        assert "exported program" in refused(path, read).message


def test_a_checkpoint_of_tensors_is_converted_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = build(network_spec(TINY), 4).state_dict()
    inside = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": {"model": inside}}, tmp_path / "w.pth")
    shapes = convert(Path("w.pth"), Path("w.safetensors"))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    again = build(network_spec(TINY), 4)
    load_weights(again, tmp_path / "w.safetensors", field="")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(WeightsError, match="exists already"):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")


@pytest.mark.parametrize("loaded", [[1, 2], {"a": 1}, {"state_dict": {}}, torch.ones(3)])
def test_a_pickle_without_named_tensors_is_no_state_dict(loaded: Any) -> None:
    with pytest.raises(ValueError, match="without named tensors"):
        state_dict_in(loaded)


def test_sparse_tensors_are_not_converted() -> None:
    with pytest.raises(ValueError, match="weight is sparse"):
        state_dict_in({"weight": torch.eye(3).to_sparse()})


# --- headers ----------------------------------------------------------------------------------------------------------


def with_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def a_tensor(first: int, last: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def many_tensors(count: int) -> bytes:
    """Neighbours without a gap, so that only the end of the file shows that something is wrong."""
    parts = (b'"%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}' % (i, 4 * i, 4 * i + 4) for i in range(count))
    return b"{" + b",".join(parts) + b"}"


HEADERS: dict[str, Callable[[Path], None]] = {
    "a header of 8 EiB": lambda path: with_header(path, {}, length=2**63),
    "a header longer than the file": lambda path: with_header(path, {}, length=2**20),
    "a header over the limit": lambda path: with_header(path, b" " * (HEADER_LIMIT_BYTES + 1)),
    "a million tensors": lambda path: with_header(path, many_tensors(1_000_000), b"\0" * 4),
    "as many tensors as go into a header": lambda path: with_header(path, many_tensors(14_000), b"\0" * 3),
    "a tensor of 4 EiB": lambda path: with_header(path, {"a": a_tensor(0, 4, [2**60])}, b"\0" * 4),
    "offsets past the end": lambda path: with_header(path, {"a": a_tensor(0, 2**62, [2**60])}, b"\0" * 4),
    "overlapping offsets": lambda path: with_header(
        path, {"a": a_tensor(0, 8, [2]), "b": a_tensor(4, 12, [2])}, b"\0" * 12
    ),
    "a gap": lambda path: with_header(path, {"a": a_tensor(0, 4, [1]), "b": a_tensor(8, 12, [1])}, b"\0" * 12),
    "offsets backwards": lambda path: with_header(path, {"a": a_tensor(4, 0, [1])}, b"\0" * 4),
    "negative offsets": lambda path: with_header(path, {"a": a_tensor(-4, 0, [1])}),
    "negative sides": lambda path: with_header(path, {"a": a_tensor(0, 4, [-1, -1])}, b"\0" * 4),
    "an unknown dtype": lambda path: with_header(path, {"a": a_tensor(0, 4, [1], "F128")}, b"\0" * 4),
    "sides that are no numbers": lambda path: with_header(path, {"a": a_tensor(0, 4, [True])}, b"\0" * 4),
    "a number of 5000 digits": lambda path: with_header(path, b'{"a":' + b"9" * 5000 + b"}"),
    "lists 100,000 deep": lambda path: with_header(path, b"[" * 100_000),
    "bytes after the tensors": lambda path: with_header(path, {"a": a_tensor(0, 4, [1])}, b"\0" * 9),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_lying_header_is_refused_at_once_and_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    HEADERS[name](path)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(3):  # a garbage collection of all that other tests left may fall into one
        start = time.process_time()
        error = refused(path, lambda: shapes_in(path))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB more at most"
    assert "not a whole safetensors file" in error.message and error.field == "/teacher/weights"


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3"])
def test_quantised_weights_are_refused_with_what_is_read(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with_header(path, {"a": a_tensor(0, 4, [4], dtype)}, b"\0" * 4)
    error = refused(path, lambda: shapes_in(path))
    assert dtype in error.message and "bfloat16" in str(error.hint)


# --- what is in them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    network, again = build(network_spec(TINY), 4), build(network_spec(TINY), 4)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors", field="")
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == network.state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def changed_teacher(folder: Path, change: Callable[[State], None]) -> Path:
    path = save_teacher(folder)
    state = load_file(path)
    change(state)
    save_file(state, path)
    return path


def twenty_extra(state: State) -> None:
    state.update({f"extra.{i}": torch.ones(1) for i in range(20)})


def twenty_missing(state: State) -> None:
    for name in [name for name in state if name.endswith((".bias", ".weight")) and "level" in name][:20]:
        del state[name]


def another_architecture(state: State) -> None:
    state.clear()
    state.update({f"layer{i}.weight": torch.ones(2, 2) for i in range(20)})


def not_a_number(state: State) -> None:
    state["br.weight"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said", "listed"),
    [
        (twenty_extra, "20 tensors differ", ("is not in the network", 10)),
        (twenty_missing, "20 tensors differ", ("is missing in the file", 10)),
        (another_architecture, "holds no weights of espnet", ("layer", 3)),
        (not_a_number, "NaN or infinity in 1 tensors: br.weight", ("br.weight", 1)),
    ],
)
def test_weights_of_another_kind_are_refused_with_the_first_ten_differences(
    change: Callable[[State], None], said: str, listed: tuple[str, int], tmp_path: Path
) -> None:
    path = changed_teacher(tmp_path, change)
    error = refused(path, lambda: load_teacher(small_spec(path).teacher, CLASSES))
    assert said in error.message and str(error).count(listed[0]) == listed[1]
    assert error.field == "/teacher/weights"


# --- part of a file ---------------------------------------------------------------------------------------------------


def starting(path: Path, **student: Any) -> Any:
    return small_spec(
        None, student__weights=str(path), **{f"student__{name}": value for name, value in student.items()}
    )


def test_a_student_starts_from_what_fits_of_a_file_and_the_run_says_what_did_not(tmp_path: Path) -> None:
    path = save_teacher(tmp_path, classes=7)
    with pytest.raises(WeightsError, match="tensors differ"):
        build_student(starting(path), len(CLASSES))
    events: list[Any] = []
    check(starting(path, weights_share=0.5))
    train(starting(path, weights_share=0.5), tmp_path / "run", events.append)
    note = next(event.message for event in events if event.type == "note")
    assert "matched 78 of 114 tensors; of another shape encoder.classifier.conv.weight is (7, 256, 1, 1) in" in note
    student, fit = build_student(starting(path, weights_share=0.5), len(CLASSES))
    assert fit is not None and 0.5 < fit.share < 1
    saved = load_file(path)
    assert all(torch.equal(student.network.state_dict()[name], saved[name]) for name in fit.matched)


def test_too_small_a_share_is_refused_with_both_shares(tmp_path: Path) -> None:
    path = save_teacher(tmp_path, classes=7)
    error = refused(path, lambda: build_student(starting(path, weights_share=0.999), len(CLASSES)))
    assert "99.9% are asked for" in error.message and error.field == "/student/weights"


def test_a_prefix_that_every_name_has_is_not_part_of_the_names(tmp_path: Path) -> None:
    state = build(network_spec(TINY), 4).state_dict()
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    fit = load_weights(build(network_spec(TINY), 4), tmp_path / "w.safetensors", field="")
    assert fit.share == 1 and not fit.unexpected


@pytest.mark.parametrize(("theirs", "ours"), [("", ""), ("backbone.", ""), ("", "model.")])
def test_an_encoders_file_is_matched_whatever_stands_before_its_names(theirs: str, ours: str, tmp_path: Path) -> None:
    network = build("fpn:tu-resnet18" if ours else "fpn:resnet18", 4)
    source = build("fpn:tu-resnet18" if ours else "fpn:resnet18", 4).encoder.state_dict()
    state = {theirs + name.removeprefix(ours): tensor.clone() for name, tensor in source.items()}
    save_file(state | {"fc.weight": torch.ones(10, 512)}, tmp_path / "w.safetensors")
    fit = load_encoder(network, tmp_path / "w.safetensors", field="/student/encoder_file")
    assert fit.share == 1 and fit.unexpected == ("fc.weight",)
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.encoder.state_dict().items())


def test_the_file_of_another_backbone_is_refused(tmp_path: Path) -> None:
    save_file({"other.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    error = refused(
        tmp_path / "w.safetensors",
        lambda: load_encoder(build("fpn:resnet18", 4), tmp_path / "w.safetensors", field="/student/encoder_file"),
    )
    assert error.field == "/student/encoder_file" and "encoder" in str(error.hint)
    assert error.message.count("is missing in the file") == 10


@pytest.mark.parametrize(
    ("network", "file", "unexpected"),
    [
        ("fpn:tu-tf_efficientnet_lite0", "imagenet_tf_efficientnet_lite0.timm", 8),
        ("fpn:mobilenet_v2", "imagenet_mobilenet_v2.torchvision_features", 0),
    ],
)
def test_published_backbones_fill_the_whole_encoder(
    network: str, file: str, unexpected: int, shared_weights: Path
) -> None:
    fit = load_encoder(build(network, 4), shared_weights / f"{file}.safetensors", field="")
    assert not fit.missing and not fit.reshaped and len(fit.unexpected) == unexpected


PRETRAINED = {"name": "fpn", "encoder": "resnet18", "encoder_weights": "imagenet"}


@pytest.mark.parametrize("other", [{"student__weights": "a.safetensors"}, {"student__network": PRETRAINED}])
def test_a_student_has_one_start(other: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="encoder_file"):
        small_spec(None, student__encoder_file="b.safetensors", **other)


def test_numbers_of_any_float_type_are_finite_or_refused(tmp_path: Path) -> None:
    state = build(network_spec(TINY), 4).state_dict()
    state["br.weight"] = torch.from_numpy(np.full(tuple(state["br.weight"].shape), np.inf, dtype=np.float16))
    save_file(state, tmp_path / "w.safetensors")
    refused(
        tmp_path / "w.safetensors",
        lambda: load_weights(build(network_spec(TINY), 4), tmp_path / "w.safetensors", field=""),
    )
