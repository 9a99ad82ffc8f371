"""Processes that train at once share one store: none computes what another has, and who is killed leaves nothing
wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsd_core.events import Progress, parse, read_lines
from dsd_core.fault_points import VARIABLE
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec
from dsd_core.train import train
from tests.builders import tiny_camvid
from tests.conftest import ROOT
from tests.core.small import WITHOUT_BATCH_NORM, save_teacher, small_spec

IMAGES, EPOCHS = 6, 4
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dsd_core")


def spec_of(folder: Path, **changes: Any) -> JobSpec:
    root = folder / "CamVid"
    settings: dict[str, Any] = {
        "dataset": {"name": "camvid", "root": str(root if root.exists() else tiny_camvid(root, train=IMAGES))},
        "losses": [{"loss": "ce"}, {"loss": "psd"}, {"loss": "csd", "logits_at": "head"}],
        "train__batch": 3,
        "train__epochs": EPOCHS,
        "train__augment": {"crop": (32, 48), "scale": (0.5, 1.5)},
        "evaluate__every_epochs": EPOCHS,
        "evaluate__pictures": 0,
    }
    return small_spec(save_teacher(folder, classes=11), **settings | changes)


def started(spec: JobSpec, out: Path, program: tuple[str, ...] = ("-m", "dsd_core"), fault: str = "") -> Any:
    out.mkdir(exist_ok=True)
    (out / "job.json").write_text(spec.model_dump_json())
    command = [sys.executable, *program, "run", str(out / "job.json"), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: fault})


def curve(out: Path) -> list[dict[str, float | None]]:
    events = (parse(line) for line, _ in read_lines(out / "events.jsonl"))
    return [event.losses for event in events if isinstance(event, Progress)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("signals", [{"signals": "image"}, {"signals": "view", "views": 2}], ids=["image", "view"])
def test_two_processes_have_the_loss_curve_of_one_and_the_same_store(signals, tmp_path) -> None:
    spec = spec_of(
        tmp_path,
        student__network=WITHOUT_BATCH_NORM,
        train__optimizer="sgd",
        train__augment={"scale": (0.5, 1.0)},  # of small crops a student's first steps amplify rounding
        **signals,
    )
    assert started(spec, tmp_path / "two", TORCHRUN).wait(timeout=200) == 0
    store = Store(tmp_path / "two" / "signals")
    (held,) = store.entries()
    assert held.filled == held.records == IMAGES * signals.get("views", 1)
    alone: list[Any] = []
    (tmp_path / "one").mkdir()
    run, _ = train(spec, tmp_path / "one", alone.append, store=store)
    assert run.signals is not None and (run.signals.key, run.signals.teacher_passes) == (held.key, 0)
    ours, theirs = curve(tmp_path / "two"), [event.losses for event in alone if isinstance(event, Progress)]
    assert len(ours) == len(theirs) == 8
    for two, one in zip(ours, theirs, strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signals.after_data@2:kill", "train.after_step:kill"])
def test_a_run_killed_while_it_fills_the_store_ends_with_the_bits_of_one_that_was_not(fault, tmp_path) -> None:
    spec = spec_of(tmp_path, signals="view", views=2)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert started(spec, killed, fault=fault).wait(timeout=100) == -SIGKILL
    (held,) = Store(killed / "signals").entries()
    assert 0 < held.filled < held.records
    for out in (killed, undisturbed):
        assert started(spec, out).wait(timeout=100) == 0
    ours, theirs = weights(killed), weights(undisturbed)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.slow
def test_two_jobs_that_start_at_once_compute_each_record_once(tmp_path) -> None:
    specs = [spec_of(tmp_path, train__seed=seed) for seed in (0, 1)]
    jobs = [(tmp_path / f"job{spec.train.seed}") for spec in specs]
    shared = tmp_path / "store"
    shared.mkdir()
    for out in jobs:
        out.mkdir()
        (out / "signals").symlink_to(shared)
    running = [started(spec, out) for spec, out in zip(specs, jobs, strict=True)]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    passes = [parse(line) for out in jobs for line, _ in read_lines(out / "events.jsonl")]
    used = [event.result.signals for event in passes if event.type == "finished"]
    assert sum(use.teacher_passes for use in used) == IMAGES and used[0].key == used[1].key
    alone = tmp_path / "alone"
    assert started(specs[1], alone).wait(timeout=100) == 0
    ours, theirs = weights(jobs[1]), weights(alone)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
