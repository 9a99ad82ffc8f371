"""Two processes train what one would, as does one that takes its batch in parts, and end with the same bits however
they are ended on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dsd_core.errors import DsdError
from dsd_core.events import Progress, parse, read_lines
from dsd_core.spec import JobSpec
from dsd_core.train import train
from tests.builders import tiny_camvid
from tests.core.small import WITHOUT_BATCH_NORM, save_teacher, small_spec

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def spec_of(folder: Path, **changes: object) -> JobSpec:
    """A job whose batches of 3 two processes cannot halve, on images of which each has its own share of void."""
    root = tiny_camvid(folder / "CamVid", train=6)
    return small_spec(
        save_teacher(folder, classes=11),
        dataset={"name": "camvid", "root": str(root)},
        student__network=WITHOUT_BATCH_NORM,
        losses=[{"loss": "ce"}, {"loss": "kd"}, {"loss": "csd"}, {"loss": "psd"}],
        train__batch=3,
        train__optimizer="sgd",  # AdamW makes of a rounding error in a small gradient a whole step
        train__augment={"scale": [0.5, 1.0]},
        **changes,
    )


def start(spec: JobSpec, out: Path, program: tuple[str, ...] = ("dsd_core",)) -> subprocess.Popen[bytes]:
    out.mkdir(exist_ok=True)
    (out / "job.json").write_text(spec.model_dump_json())
    command = [*TORCHRUN, *program, "run", str(out / "job.json"), "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def events_of(out: Path) -> list:
    return [parse(line) for line, _ in read_lines(out / "events.jsonl")]


def checkpoints(out: Path) -> int:
    return sum(event.type == "checkpoint" for event in events_of(out))


def until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return sorted(psutil.Process(agent.pid).children(), key=lambda process: process.environ()["RANK"])


def curve(events: list) -> list[dict[str, float]]:
    return [event.losses for event in events if isinstance(event, Progress)]


@pytest.mark.slow
def test_a_batch_in_parts_has_the_loss_curve_of_whole_ones(tmp_path):
    curves = {}
    for parts in (1, 2):
        events: list = []
        train(spec_of(tmp_path, train__epochs=4, train__accumulate=parts), tmp_path / str(parts), events.append)
        curves[parts] = [event for event in events if isinstance(event, Progress)]
    assert len(curves[1]) == 8
    for ours, expected in zip(curves[2], curves[1], strict=True):
        assert ours.losses == pytest.approx(expected.losses, abs=1e-5)
        assert ours.grad_norms == pytest.approx(expected.grad_norms, rel=1e-3, abs=1e-5)


@pytest.mark.faults_only
@pytest.mark.timeout(600)
@pytest.mark.fault("F1")
def test_two_processes_have_the_loss_curve_of_one_and_killed_or_stopped_end_with_the_same_bits(tmp_path):
    spec = spec_of(tmp_path, train__epochs=4, train__log_every=2, train__checkpoint_every_s=0.0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(spec, whole).wait(200) == 0
    alone: list = []
    train(spec, tmp_path / "alone", alone.append)
    together = curve(events_of(whole))
    assert len(together) == 5 and [set(losses) for losses in together] == [{"ce", "kd", "csd", "psd", "loss"}] * 5
    for ours, expected in zip(together, curve(alone), strict=True):
        assert ours == pytest.approx(expected, abs=1e-5)

    agent = start(spec, broken)
    until(lambda: checkpoints(broken) >= 2, agent)
    ranks = ranks_of(agent)
    os.killpg(agent.pid, signal.SIGKILL)
    assert agent.wait(30) == -signal.SIGKILL
    assert not psutil.wait_procs(ranks, timeout=30)[1], "the ranks, in sessions of their own, end with torchrun"
    before = checkpoints(broken)

    agent = start(spec, broken)
    until(lambda: checkpoints(broken) >= before + 2, agent)
    ranks_of(agent)[1].terminate()  # one is told, and all stop at the same step
    assert agent.wait(60) == 1 and (broken / "exit_code").read_text() == "75\n"
    assert events_of(broken)[-1].type == "checkpoint" and checkpoints(broken) < 8

    assert start(spec, broken).wait(200) == 0
    assert (broken / "exit_code").read_text() == "0\n"
    resumed = [event.resumed_from for event in events_of(broken) if event.type == "started"]
    assert resumed[0] is None and 0 < resumed[1] < resumed[2]
    assert json.loads((broken / "result.json").read_text())["bit_exact"]
    files = [(out / "student" / "model.safetensors").read_bytes() for out in (whole, broken)]
    assert files[0] == files[1]


@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill", "Another process of this run has ended"),
        pytest.param("raise", "RuntimeError: Fault point train.after_step", marks=pytest.mark.slow),
    ],
)
def test_the_end_of_one_process_ends_the_other_which_says_why(fault, message, tmp_path):
    root = tiny_camvid(tmp_path / "CamVid", train=6)
    spec = small_spec(None, dataset={"name": "camvid", "root": str(root)}, train__batch=2, train__epochs=100_000)
    agent = start(spec, tmp_path / "out", program=("tests.core.faulty_rank", f"train.after_step@2:{fault}"))
    assert agent.wait(200) == 1 and (tmp_path / "out" / "exit_code").read_text() == f"{DsdError.exit_code}\n"
    failed = events_of(tmp_path / "out")[-1]
    assert failed.type == "failed" and failed.code == "internal" and failed.message.startswith(message)
