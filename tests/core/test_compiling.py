"""A compiled training trains what an eager one does, and leaves networks as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dsd_core.data import open_dataset
from dsd_core.data.loader import train_batches
from dsd_core.data.prefetch import on_device
from dsd_core.errors import SpecError
from dsd_core.events import Progress, parse, read_lines
from dsd_core.models import build
from dsd_core.models.compiling import compiled, refuse_without_compiler
from dsd_core.models.onnx_session import onnx_session
from dsd_core.train import fit
from tests.core.small import save_teacher, small_spec

CPU = torch.device("cpu")


def test_a_compiled_network_keeps_its_names_and_is_itself_again_afterwards() -> None:
    network = build("espnet", 3).eval()
    names, images = list(network.state_dict()), torch.rand(1, 3, 32, 32)
    with compiled(network, "default"):
        assert list(network.state_dict()) == names and network._compiled_call_impl is not None
    assert network._compiled_call_impl is None
    with compiled(network, "off"):
        assert network._compiled_call_impl is None
    assert network(images).shape == (1, 3, 32, 32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(SpecError, match="none here") as caught:
        refuse_without_compiler("cuda_graphs", CPU)
    assert caught.value.field == "/train/compile" and "default" in str(caught.value.hint)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_job_has_the_losses_of_an_eager_one_and_exports_its_student(tmp_path) -> None:
    curves = {}
    for how in ("off", "default"):
        events: list = []
        changes = {"train__compile": how, "train__norms_every": 3, "losses": [{"loss": "ce"}, {"loss": "psd"}]}
        spec = small_spec(save_teacher(tmp_path), signals="off", train__learning_rate=1e-3, **changes)
        result = fit(spec, tmp_path / how, events.append)
        curves[how] = [event.losses for event in events if isinstance(event, Progress)]
    assert len(curves["off"]) == 6
    for eager, fast in zip(curves["off"], curves["default"], strict=True):
        assert fast == pytest.approx(eager, rel=5e-3)
    names = [set(load_file(tmp_path / how / "student" / "model.safetensors")) for how in curves]
    assert names[0] == names[1] and result.onnx_max_error < 1e-4
    assert onnx_session(tmp_path / "default" / "student" / "model.onnx").get_inputs()


@pytest.mark.slow
def test_a_compiler_that_is_not_there_is_said_before_training(tmp_path) -> None:
    (tmp_path / "job.json").write_text(small_spec(train__compile="default").model_dump_json())
    program = [sys.executable, "-m", "dsd_core", "run", str(tmp_path / "job.json"), "--out", str(tmp_path / "out")]
    hidden = {"PATH": str(tmp_path), "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(program, env={**os.environ, **hidden}, capture_output=True, text=True)
    assert done.returncode == SpecError.exit_code, done.stderr
    failed = [parse(line) for line, _ in read_lines(tmp_path / "out" / "events.jsonl")][-1]
    assert failed.type == "failed" and failed.field == "/train/compile"
    assert failed.message.startswith("torch.compile does not work here") and "C++ compiler" in str(failed.hint)


def test_batches_for_a_cpu_are_handed_through_in_order() -> None:
    data, training = open_dataset("streets", None, "train", (32, 48)), small_spec(train__batch=4).train
    expected = list(train_batches(data, training, 0, 3))
    found = list(on_device(train_batches(data, training, 0, 3), CPU))
    assert [batch.indices for batch in found] == [batch.indices for batch in expected]
    assert all(torch.equal(ours.images_N3HW, theirs.images_N3HW) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_for_a_gpu_are_the_same_and_there_when_they_are_used() -> None:
    data, training = open_dataset("streets", None, "train", (32, 48)), small_spec(train__batch=4).train
    expected = list(train_batches(data, training, 0, 5))
    for ours, theirs in zip(
        on_device(train_batches(data, training, 0, 5), torch.device("cuda")), expected, strict=True
    ):
        assert ours.images_N3HW.is_cuda and torch.equal(ours.images_N3HW.cpu(), theirs.images_N3HW)
        assert torch.equal(ours.labels_NHW.cpu(), theirs.labels_NHW)
