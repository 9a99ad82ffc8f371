"""`python -m dsd_core`, the door the worker uses: exit codes, events, evaluate and predict on real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsd_core.errors import SpecError
from dsd_core.events import parse, read_lines
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec, parse_spec
from tests.builders import tiny_camvid
from tests.core import layouts
from tests.core.small import save_teacher, small_spec

SMALL = {"name": "streets", "size": [32, 48]}


def dsd_core(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dsd_core", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(dsd_core(*arguments), capture_output=True, text=True, timeout=200)


def write(spec: JobSpec, folder: Path) -> Path:
    path = folder / "job.json"
    path.write_text(spec.model_dump_json())
    return path


def events_of(out: Path) -> list:
    return [parse(line) for line, _ in read_lines(out / "events.jsonl")]


def wait_for(out: Path, process: subprocess.Popen, kind: str) -> None:
    deadline = time.monotonic() + 120
    while kind not in [event.type for event in events_of(out)]:
        assert process.poll() is None and time.monotonic() < deadline, f"no {kind} event came"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.fault("F3")
def test_a_run_that_is_asked_to_stop_exits_75_and_killed_or_not_ends_as_if_nothing_had_happened(tmp_path):
    job = write(small_spec(None, train__epochs=6, train__checkpoint_every_s=0.0), tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("run", job, "--out", whole).returncode == 0
    for fence, number in enumerate((signal.SIGKILL, signal.SIGTERM), start=1):
        process = subprocess.Popen(dsd_core("run", job, "--out", broken, "--fence", fence))
        before = len([event for event in events_of(broken) if event.type == "checkpoint"])
        deadline = time.monotonic() + 120
        while len([event for event in events_of(broken) if event.type == "checkpoint"]) < before + 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait(60)
        assert code == (75 if number == signal.SIGTERM else -9)
    assert not (broken / "student").exists()
    assert run("run", job, "--out", broken, "--fence", 3).returncode == 0
    resumed = [event.resumed_from for event in events_of(broken) if event.type == "started"]
    assert len(resumed) == 3 and resumed[0] is None and 0 < resumed[1] < resumed[2]
    files = [(folder / "student" / "model.safetensors").read_bytes() for folder in (whole, broken)]
    assert files[0] == files[1]
    written = [event.path for event in events_of(broken) if event.type == "checkpoint"]
    assert {path.rpartition("-")[2] for path in written} == {"1", "2", "3"}


@pytest.mark.slow
def test_runs_that_share_a_folder_of_signals_ask_the_teacher_once(tmp_path):
    teacher = save_teacher(tmp_path)
    uses = []
    for seed, folder, limit in ((1, "kept", "1GB"), (2, "kept", "1GB"), (3, "small", "1KB")):
        job, out = write(small_spec(teacher, train__seed=seed, train__epochs=2), tmp_path), tmp_path / str(seed)
        assert run("run", job, "--out", out, "--store", tmp_path / folder, "--store-bytes", limit).returncode == 0
        assert not (out / "signals").exists()
        uses.append(json.loads((out / "result.json").read_text())["signals"])
    first, second, third = uses
    assert first["teacher_passes"] == first["records"] > 0 and second["key"] == first["key"]
    assert (second["teacher_passes"], second["hit_rate"]) == (0, 1.0)
    assert third["key"] is None and third["hits"] == 0
    warned = [event.message for event in events_of(tmp_path / "3") if event.type == "note" and event.level == "warning"]
    assert any("may hold 0.0 MB" in message for message in warned)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_keeps_signals_ends_as_one_that_found_them_all(tmp_path):
    job = write(small_spec(save_teacher(tmp_path), train__epochs=2), tmp_path)
    broken, warm = tmp_path / "broken", tmp_path / "warm"
    command = dsd_core("run", job, "--out", broken, "--store", tmp_path / "kept")
    killed = subprocess.run(command, env=os.environ | {"DSD_FAULT": "signals.after_data@50:kill"}, timeout=200)
    assert killed.returncode == -signal.SIGKILL
    assert [held.filled for held in Store(tmp_path / "kept").entries()] == [49]
    for out in (broken, warm):
        assert run("run", job, "--out", out, "--store", tmp_path / "kept").returncode == 0
    uses = [json.loads((out / "result.json").read_text())["signals"] for out in (broken, warm)]
    assert [use["teacher_passes"] for use in uses] == [uses[0]["records"] - 49, 0]
    weights = [(out / "student" / "model.safetensors").read_bytes() for out in (broken, warm)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_trained_student_is_scored_in_a_run_folder_by_the_file_that_is_given(tmp_path):
    job = write(parse_spec({"kind": "evaluate", "name": "x", "dataset": SMALL, "student": {"job": "b2"}}), tmp_path)
    student = save_teacher(tmp_path)
    assert run("run", job, "--out", tmp_path / "out", "--student", student).returncode == 0
    started, evaluated, finished = events_of(tmp_path / "out")
    assert (started.total_steps, evaluated.type, finished.result.files) == (0, "evaluated", [])
    assert finished.result.student.miou == evaluated.miou


def test_bad_data_exits_65_with_a_failed_event_that_names_the_file(tmp_path):
    root = tiny_camvid(tmp_path / "CamVid")
    image = root / "val" / "val_001.png"
    image.write_bytes(image.read_bytes()[:300])
    spec = {
        "kind": "train",
        "name": "x",
        "dataset": {"name": "camvid", "root": str(root)},
        "student": {"network": "espnet"},
    }
    job = tmp_path / "job.json"
    job.write_text(json.dumps(spec))
    done = run("run", job, "--out", tmp_path / "out")
    assert done.returncode == 65 and "val_001.png" in done.stderr and "Traceback" not in done.stderr
    failed = events_of(tmp_path / "out")[-1]
    assert failed.type == "failed" and failed.code == "invalid_data" and "val_001.png" in failed.message


@pytest.mark.fault("F33")
def test_a_run_folder_that_cannot_be_written_exits_74_and_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("run", write(small_spec(None), tmp_path), "--out", tmp_path / "file" / "out")
    assert done.returncode == 74 and str(tmp_path / "file" / "out") in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_job_file_exits_78_and_names_every_field(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("name: x\ndatset: {name: streets}\nstudent: {network: espnt}\n")
    done = run("run", job, "--out", tmp_path / "out")
    assert done.returncode == 78
    for part in ("/datset", "Did you mean dataset?", "espnt", "espnet"):
        assert part in done.stderr


def test_check_prints_the_resolved_spec(tmp_path):
    done = run("check", write(small_spec(None), tmp_path))
    assert json.loads(done.stdout)["spec"]["train"]["momentum"] == 0.9


@pytest.mark.slow
def test_evaluate_and_predict_take_weights_or_the_exported_student(tmp_path):
    torch.manual_seed(0)
    root = tiny_camvid(tmp_path / "CamVid")
    teacher = save_teacher(tmp_path, classes=12)
    figures = ("evaluate", "--weights", teacher, "--dataset", "camvid", "--root", root, "--json")
    done = run(*figures)
    assert done.returncode == 0, done.stderr
    score = json.loads(done.stdout)
    assert set(score) >= {"miou", "pixel_accuracy", "per_class_iou", "images"} and score["images"] == 3
    assert len(score["per_class_iou"]) == len(score["per_class_boundary_iou"]) == 11
    done = run(*figures[:-1], "--window", "32x32", "--stride", "16x16", "--scales", "0.5,1", "--flip", "--no-boundary")
    assert done.returncode == 0, done.stderr
    assert "class accuracy" in done.stdout and "boundary" not in done.stdout and "3 images" in done.stdout
    for style, mode in (("overlay", "RGB"), ("colours", "RGB"), ("ids", "L")):
        out = tmp_path / f"{style}.png"
        photo = root / "val" / "val_000.png"
        done = run("predict", photo, "-o", out, "--weights", teacher, "--style", style, "--size", "24x32")
        assert done.returncode == 0, done.stderr
        with Image.open(out) as picture:
            assert picture.mode == mode and picture.size == (64, 48)
    assert np.array(Image.open(tmp_path / "ids.png")).max() < 12


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--dataset", "streets"), 78, "exactly one of --weights"),
        (("--dataset", "streets", "--weights", "none.safetensors"), 66, "There is no file none.safetensors"),
        (("--dataset", "street", "--model", __file__), 78, "Did you mean: streets"),
        (("--dataset", "streets", "--size", "big", "--model", "x.onnx"), 78, "Write HEIGHTxWIDTH"),
        (
            ("--dataset", "streets", "--scales", "1,two", "--model", "x.onnx"),
            78,
            "/scales/1: Input should be a valid number",
        ),
        (("--dataset", "streets", "--stride", "8x8", "--model", "x.onnx"), 78, "are for mode: sliding"),
    ],
)
def test_evaluate_answers_wrong_arguments_with_what_to_do(arguments, code, said):
    done = run("evaluate", *arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


def test_data_check_reports_on_stdout_shows_progress_on_stderr_and_exits_by_what_it_found(tmp_path):
    root = layouts.folder(tmp_path)
    clean = run("data", "check", "folder", root, "--json")
    assert clean.returncode == 0 and json.loads(clean.stdout)["clean"] and "train" in clean.stderr
    for name in ("a", "c"):
        (root / "images" / "train" / f"{name}.png").write_bytes(b"")
    bad = run("data", "check", "folder", root, "--size", "16x16")
    assert bad.returncode == 65 and "a.png cannot be decoded" in bad.stdout and "c.png cannot be decoded" in bad.stdout
    unknown = run("data", "check", "foldr")
    assert unknown.returncode == 78 and "Did you mean: folder" in unknown.stderr


def test_evaluate_says_that_a_split_without_labels_cannot_be_scored(tmp_path):
    root = layouts.folder(tmp_path / "data")
    (root / "masks" / "val" / "d.png").unlink()
    (root / "masks" / "val").rmdir()
    done = run("evaluate", "--weights", save_teacher(tmp_path, classes=3), "--dataset", "folder", "--root", root)
    assert done.returncode == 0 and "no labels to score on" in done.stdout


@pytest.mark.slow
def test_espnet_with_the_published_camvid_weights_scores_what_was_measured_elsewhere(camvid, shared_weights):
    done = run(
        *("evaluate", "--network", "espnet", "--weights", shared_weights / "camvid11_espnet_p2_q8.safetensors"),
        *("--preprocess", "espnet_camvid", "--dataset", "camvid", "--root", camvid, "--split", "val", "--json"),
        *("--threads", os.cpu_count()),
    )
    score = json.loads(done.stdout)
    assert score["images"] == 101
    assert score["miou"] == pytest.approx(0.6935, abs=0.001)
    assert score["pixel_accuracy"] == pytest.approx(0.9330, abs=0.001)


@pytest.mark.slow
def test_inspect_prints_one_json_object_and_an_unknown_network_is_an_error_with_near_names():
    found = json.loads(run("inspect", "enet", "--classes", "11", "--size", "360x480", "--json").stdout)
    assert (found["size"], found["classes"], found["weights"]) == ([360, 480], 11, [])
    assert found["flops"] == found["flops_deployed"] > 0
    assert {"name": "dilated3_7", "shape": [128, 45, 60], "stride": 8, "default": True} in found["taps"]
    failed = run("inspect", "enett")
    assert failed.returncode == SpecError.exit_code
    assert "'enett'" in failed.stderr and "Did you mean" in failed.stderr and "Traceback" not in failed.stderr


def test_convert_turns_a_checkpoint_into_safetensors_and_says_what_it_wrote(tmp_path):
    torch.save({"state_dict": {"module.weight": torch.ones(2, 3)}}, tmp_path / "w.pt")
    done = run("convert", tmp_path / "w.pt", tmp_path / "w.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(tmp_path / "w.safetensors"), "tensors": 1, "values": 6}
    (tmp_path / "w.pt").write_bytes(b"\x80\x04.")
    again = run("convert", tmp_path / "w.pt", tmp_path / "again.safetensors")
    assert again.returncode == 66 and "w.pt cannot be converted" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.slow
@pytest.mark.fault("F6")
def test_a_run_tells_its_stacks_on_sigusr1_and_ends_with_its_best_student_on_sigusr2(tmp_path):
    root = tiny_camvid(tmp_path / "CamVid")
    spec = small_spec(None, dataset={"name": "camvid", "root": str(root)}, train__batch=2, train__epochs=100_000)
    out = tmp_path / "out"
    program = dsd_core("run", write(spec, tmp_path), "--out", out, "--fence", "7")
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    wait_for(out, process, "evaluated")
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR2)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0 and (out / "exit_code").read_text() == "0\n"
    assert "most recent call first" in told and "train_leg" in told
    finished = events_of(out)[-1]
    assert finished.type == "finished" and finished.result.stopped_early and finished.result.stopped_step < 300_000
    assert (out / "student" / "model.onnx").exists()
