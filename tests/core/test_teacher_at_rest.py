"""What distillation leaves alone, a teacher with dropout and batch norm, and what several processes come to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsd_core.data import open_dataset
from dsd_core.data.loader import train_batches
from dsd_core.learner import build_learner
from dsd_core.models import build
from dsd_core.models.frozen import Frozen
from dsd_core.network_spec import network_spec
from dsd_core.teacher import load_teacher
from tests.core.distilling_rank import outcome, share_of, task_of
from tests.core.small import CLASSES, save_teacher, small_spec

ROOT = Path(__file__).resolve().parent.parent.parent
WITH_DROPOUT = [
    {"name": "fpn", "encoder": "resnet18", "options": {"decoder_dropout": 0.5}},
    {"name": "pspnet", "encoder": "resnet18", "options": {"psp_dropout": 0.5, "encoder_depth": 3}},
]


def dropout_teacher(folder: Path, network: dict) -> tuple[Path, nn.Module]:
    """A weights file of random weights, and the network before anything froze it."""
    torch.manual_seed(5)
    module = build(network_spec(network), len(CLASSES))
    path = folder / "dropout.safetensors"
    save_file(module.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"network": network, "preprocess": "zero_one"}))
    return path, module


@pytest.mark.parametrize("network", WITH_DROPOUT, ids=lambda network: network["name"])
def test_dropout_and_batch_norm_of_the_teacher_rest_before_during_and_after_training(network, tmp_path) -> None:
    path, module = dropout_teacher(tmp_path, network)
    image_N3HW = torch.rand(2, 3, 32, 64)
    assert not torch.equal(module.train()(image_N3HW), module(image_N3HW)), "its dropout does something when it trains"

    spec = small_spec(path, train__batch=4)
    frozen = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    batches = list(train_batches(open_dataset("streets", None, "train", (32, 48)), spec.train, 0, 3))
    before = frozen(batches[0].images_N3HW)
    buffers = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    learner = build_learner(spec, spec.losses, frozen, len(CLASSES), torch.device("cpu"), None)
    taught: list[Tensor] = []  # the head's logits, which is as far as it runs
    head = frozen.network.get_submodule(learner.task.teacher_layers["logits"][0])
    head.register_forward_hook(lambda module, inputs, logits: taught.append(logits))
    learner.task.train()
    for batch in (batches[0], *batches):
        learner.step(batch, 0.1, 1.0, measure=False)
    after = frozen(batches[0].images_N3HW)

    assert len(taught) == 5 and torch.equal(after, before)
    assert all(torch.equal(logits, taught[-1]) for logits in taught[:2])
    assert any("running_mean" in name for name in buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in frozen.named_buffers())


def expect_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(("size", "parts"), [(3, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_two_processes_come_to_the_terms_and_gradients_of_the_whole_batch(
    size: int, parts: int, tmp_path: Path
) -> None:
    teacher = save_teacher(tmp_path)
    outs = [tmp_path / f"rank-{rank}.safetensors" for rank in range(2)]
    program = [sys.executable, "-m", "tests.core.distilling_rank"]
    shared = [str(tmp_path / "meeting"), str(teacher)]
    ranks = [
        subprocess.Popen([*program, str(rank), "2", *shared, str(out), str(size), str(parts)], cwd=ROOT)
        for rank, out in enumerate(outs)
    ]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]

    task, batch = task_of(teacher), share_of(teacher, 0, 1, size)
    shares = [share_of(teacher, rank, 2, size).valid_NHW.float().mean().item() for rank in range(2)]
    assert abs(shares[0] - shares[1]) > 0.01, "one process has more void than the other"
    alone = outcome(task, batch)
    assert len(list(task.projections.parameters())) >= 2
    assert sum(name.startswith("gradient") for name in alone) == len(task.learned())
    for together in map(load_file, outs):
        expect_equal(together, alone)


def test_a_batch_in_parts_comes_to_the_terms_and_gradients_of_the_whole(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path)
    batch = share_of(teacher, 0, 1, 5)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [1, 2, 2] and sum((part.indices for part in parts), ()) == batch.indices
    known = [part.valid_NHW.float().mean().item() for part in parts]
    assert max(known) - min(known) > 0.01, "the parts differ in their void"
    expect_equal(outcome(task_of(teacher), batch, 3), outcome(task_of(teacher), batch))
