"""The `dsd` command: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from client.http import Client
from client.save import NoSuchFile, inside
from tests.client import scenes
from tests.client.conftest import Wire, says, sends
from tests.core.small import save_teacher

JOB = {
    "id": "job_1", "name": "espnet", "kind": "distill", "status": "succeeded", "reason": "finished", "attempt": 1,
    "max_attempts": 3, "created_at": scenes.AT, "error": None, "progress": None,
    "model": {"name": "espnet", "version": 2}, "mlflow": {"run_id": None, "url": None},
    "result": scenes.result(),
}  # fmt: skip
FAILED = JOB | {
    "status": "failed", "reason": "invalid_data", "result": None,
    "error": {"code": "invalid_data", "message": "no such folder", "hint": "Check it.", "field": "/dataset/root"},
}  # fmt: skip
VERSION = {
    "version": 2, "aliases": ["latest-good"], "miou": 0.55, "job_id": "job_1", "created_at": scenes.AT, "files": [],
}  # fmt: skip
MODEL = {"name": "espnet", "aliases": {"latest-good": 2}, "versions": [VERSION]}
HELD = {
    "place": "/storage",
    "runs": 3,
    "bytes": 6_000_000,
    "keep_checkpoint_days": 7,
    "keep_days": None,
    "keep_bytes": None,
}
HELD |= {"checkpoint_bytes": 3_000_000, "student_bytes": 2_000_000, "other_bytes": 1_000_000, "signal_bytes": 7_000_000}
REMOVAL = {"job_id": "job_1", "name": "espnet", "part": "checkpoints", "bytes": 3_000_000, "why": "the job is old"}
PRUNED = {"dry_run": True, "bytes": 3_000_000, "data": [REMOVAL]}
ENTRY = {
    "key": "c0ffee", "about": {"kind": "image", "teacher": "a-teacher", "dataset": "camvid"}, "bytes": 7_000_000,
    "records": 367, "filled": 300, "created_at": scenes.AT, "used_at": scenes.AT, "in_use": False, "whole": True,
}  # fmt: skip
BROKEN = ENTRY | {"key": "decaf", "about": {}, "whole": False}
SIGNALS = {"place": "/storage/signals", "limit_bytes": 20_000_000, "bytes": 14_000_000, "data": [BROKEN, ENTRY]}
VERIFIED = {"damaged": 3, "data": [{"key": "c0ffee", "filled": 298, "damaged": 2, "whole": True}]}
SIGNALS_PRUNED = {"dry_run": False, "bytes": 7_000_000, "data": [ENTRY], "in_use": [ENTRY | {"key": "decaf"}]}
STORY = [{"seq": n, "at": data["at"], "type": data["type"], "data": data} for n, data in enumerate(scenes.run(), 1)]
STREAM = "".join(f"id: {event['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in STORY)


@pytest.fixture
def service(wire: Wire) -> Iterator[Wire]:
    """A service with one job, which has ended."""
    wire.on("/api/v1/jobs", says({"data": [JOB], "has_more": False, "next_cursor": None}))
    wire.on("/api/v1/jobs/job_1", says(JOB))
    wire.on("/api/v1/jobs/job_1/cancel", says(JOB | {"status": "cancelling"}, 202))
    wire.on("/api/v1/jobs/job_1/logs", sends(b"line\n"))
    wire.on("/api/v1/jobs/job_1/events", sends((STREAM + "event: end\ndata: {}\n\n").encode()))
    wire.on("/api/v1/models", says({"data": [MODEL]}))
    wire.on("/api/v1/storage", says(HELD))
    wire.on("/api/v1/storage/prune", says(PRUNED))
    wire.on("/api/v1/signals", says(SIGNALS))
    wire.on("/api/v1/signals/verify", says(VERIFIED))
    wire.on("/api/v1/signals/prune", says(SIGNALS_PRUNED))
    yield wire


def dsd(wire: Wire, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"DSD_URL": wire.url, "COLUMNS": "120"})


def process(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "client.cli", *arguments],
        capture_output=True, text=True, env=os.environ | env, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        *("jobs", "show job_1", "watch job_1", "cancel job_1", "models"),
        *("storage", "storage prune", "signals", "signals verify", "signals prune"),
    ],
    ids=lambda command: command.replace(" ", "-"),
)
def test_json_is_one_document_and_all_there_is_on_stdout(service: Wire, command: str) -> None:
    result = dsd(service, *command.split(), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)


def test_people_see_tables(service: Wire) -> None:
    assert "espnet" in dsd(service, "jobs").stdout
    assert "espnet/2" in dsd(service, "show", "job_1").stdout
    assert "latest-good" in dsd(service, "models").stdout
    assert dsd(service, "show", "job_1", "--log").stdout == "line\n"
    assert "3.00 MB" in dsd(service, "storage").stdout
    listed = dsd(service, "storage", "prune", "--dry-run").stdout
    assert "the job is old" in listed and "3.00 MB would go" in listed
    assert service.requests[-1][:2] == ("POST", "/api/v1/storage/prune?dry_run=true")


def test_teachers_signals_are_listed_verified_and_pruned(service: Wire) -> None:
    assert "7.00 MB" in dsd(service, "storage").stdout
    listed = dsd(service, "signals").stdout
    assert "a-teacher" in listed and "300/367" in listed and "damaged" in listed and "of 20.0 MB" in listed
    found = dsd(service, "signals", "verify", "--key", "c0f").stdout
    assert "298" in found and "What was damaged is forgotten" in found
    assert service.requests[-1][:2] == ("POST", "/api/v1/signals/verify?key=c0f")
    pruned = dsd(service, "signals", "prune", "--older-than", "2", "--to-bytes", "5GB", "--dry-run").stdout
    assert "7.00 MB went" in pruned and "left alone: decaf" in pruned
    asked = "older_than_days=2.0&to_bytes=5GB&dry_run=true"
    assert service.requests[-1][:2] == ("POST", f"/api/v1/signals/prune?{asked}")
    service.on("/api/v1/signals", says(SIGNALS | {"data": []}))
    assert "Nothing is kept" in dsd(service, "signals").stdout


def test_watching_tells_the_story_and_ends_with_the_table(service: Wire) -> None:
    result = dsd(service, "watch", "job_1")
    assert result.exit_code == 0
    assert "step 60/100" in result.stdout and "+0.0300 mIoU" in result.stdout


def test_watching_a_job_that_fails_says_why_and_exits_with_1(service: Wire) -> None:
    service.on("/api/v1/jobs/job_1", says(FAILED))
    result = dsd(service, "watch", "job_1")
    assert result.exit_code == 1
    assert "no such folder" in result.stdout and "/dataset/root" in result.stdout and "Check it." in result.stdout


def test_a_submission_carries_overrides_and_absolute_paths(service: Wire, tmp_path: Path) -> None:
    service.on("/api/v1/jobs", says(JOB | {"status": "queued"}, 202))
    (tmp_path / "job.yaml").write_text("name: a\ndataset: {name: camvid, root: CamVid}\n")
    result = dsd(service, "submit", str(tmp_path / "job.yaml"), "--set", "train.epochs=3")
    assert result.exit_code == 0 and "job_1" in result.stdout
    sent: dict[str, Any] = json.loads(service.requests[-1][3])
    assert sent["train"] == {"epochs": 3}
    assert sent["dataset"]["root"] == str(Path.cwd() / "CamVid")


def test_a_download_takes_the_files_of_one_format_and_what_explains_them(service: Wire, tmp_path: Path) -> None:
    version = "/api/v1/models/espnet/versions/latest-good"
    names = ("model.safetensors", "model.onnx", "config.json", "README.md")
    service.on(version, says({"files": [{"path": name, "bytes": 3, "sha256": ""} for name in names]}))
    for name in names:
        service.on(f"{version}/files/{name}", sends(b"abc"))
    result = dsd(service, "download", "espnet", "--format", "onnx", "-o", str(tmp_path / "here"))
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["README.md", "config.json", "model.onnx"]
    alone = dsd(service, "download", "espnet", "--format", "onnx", "-o", str(tmp_path / "my.onnx"), "--json")
    assert json.loads(alone.stdout)["files"] == [str(tmp_path / "my.onnx")]


def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../evil", "/etc/passwd", "a/../../evil", "."):
        with pytest.raises(NoSuchFile):
            inside(tmp_path, name)
    assert inside(tmp_path, "a/b.onnx") == tmp_path.resolve() / "a" / "b.onnx"


def test_an_error_is_a_message_and_a_hint_on_stderr_without_traceback() -> None:
    ended = process("jobs", "--json", DSD_URL="http://127.0.0.1:9")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "does not answer at http://127.0.0.1:9" in ended.stderr and "dsd up" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["submit"], ["nonsense"], ["demo", "--teacher", "t.safetensors"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert process(*arguments).returncode == 2


def test_a_wrong_field_of_a_job_that_runs_here_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kind: train\nname: a\ndataset: {name: streets}\nstudent: {network: espnt}\n")
    ended = process("run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "run"))
    assert ended.returncode == 1
    assert "/student/network" in ended.stderr and "espnet" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_the_service_that_runs_on_this_machine_is_found(wire: Wire, tmp_path: Path) -> None:
    wire.on("/api/v1/models", says({"data": []}))
    (tmp_path / "up.json").write_text(json.dumps({"pid": os.getpid(), "api_url": wire.url}))
    result = CliRunner().invoke(app, ["models", "--json"], env={"DSD_HOME": str(tmp_path), "DSD_URL": None})
    assert (result.exit_code, result.stdout) == (0, "[]\n")


def test_a_service_that_died_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": 2**22 + 1, "api_url": "http://127.0.0.1:1"}))
    result = CliRunner().invoke(app, ["jobs"], env={"DSD_HOME": str(tmp_path), "DSD_URL": None})
    assert "127.0.0.1:1 " not in str(result.exception)


def test_the_client_imports_neither_torch_nor_a_server() -> None:
    heavy = ("torch", "mlflow", "sqlalchemy", "celery", "fastapi", "jobs")
    code = f"import sys, client.cli; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    ("command", "method", "path", "body"),
    [
        ("pause job_1", "POST", "/jobs/job_1/pause", None),
        ("resume job_1", "POST", "/jobs/job_1/resume", None),
        ("stop job_1", "POST", "/jobs/job_1/stop", None),
        ("priority job_1 -5", "PATCH", "/jobs/job_1", {"priority": -5}),
        ("label job_1 team=a=b old-", "PATCH", "/jobs/job_1", {"labels": {"team": "a=b", "old": None}}),
        ("retry job_1", "POST", "/jobs/job_1/retry", None),
        ("clone job_1", "POST", "/jobs/job_1/clone", {}),
        ("worker drain one@here", "POST", "/workers/one%40here/drain", None),
        ("worker drain one@here --release", "POST", "/workers/one%40here/drain?release=true", None),
        ("worker undrain one@here", "POST", "/workers/one%40here/undrain", None),
    ],
)
def test_what_is_asked_of_jobs_and_workers_reaches_the_service(
    service: Wire, command: str, method: str, path: str, body: Any
) -> None:
    answer = WORKER if command.startswith("worker") else JOB | {"status": "queued", "waiting_for": "paused"}
    service.on(f"/api/v1{path.partition('?')[0]}", says(answer, 202))
    told = dsd(service, *command.split())
    assert told.exit_code == 0, told.stderr
    assert answer["name"] in told.stdout
    assert service.requests[-1][:2] == (method, f"/api/v1{path}")
    assert json.loads(service.requests[-1][3] or "null") == body
    assert json.loads(dsd(service, *command.split(), "--json").stdout) == answer


def test_a_clone_sends_only_what_changes(service: Wire) -> None:
    spec = {
        "train": {"epochs": 40, "batch": 8, "ema": 0.9},
        "losses": [{"loss": "ce", "weight": 1.0}, {"loss": "psd", "weight": 2.0}],
        "dataset": {"name": "camvid", "root": "/data"},
    }
    service.on("/api/v1/jobs/job_1", says(JOB | {"spec": spec}))
    service.on("/api/v1/jobs/job_1/clone", says(JOB, 202))
    changes = ("train.epochs=3", "train.ema=null", "losses.1.weight=5", "dataset.root=CamVid", "train.batch=8")
    arguments = [part for change in changes for part in ("--set", change)]
    assert dsd(service, "clone", "job_1", *arguments).exit_code == 0
    assert json.loads(service.requests[-1][3]) == {
        "train": {"epochs": 3, "ema": None},
        "losses": [{"loss": "ce", "weight": 1.0}, {"loss": "psd", "weight": 5}],
        "dataset": {"root": str(Path.cwd() / "CamVid")},
    }
    assert service.requests[-1][2]["idempotency-key"]


def test_a_label_that_is_none_is_refused_before_the_service_is_asked(service: Wire) -> None:
    for text in ("team", "=maps", "-"):
        refused = dsd(service, "label", "job_1", text)
        assert refused.exit_code == 1 and "KEY=VALUE" in str(getattr(refused.exception, "hint", ""))
    assert not service.requests


WAITING = JOB | {
    "status": "queued", "reason": None, "result": None, "waiting_for": "needs", "queue_position": None,
    "needs": [{"id": "job_0", "status": "running"}], "request": None, "priority": 5, "group": "maps",
    "labels": {"team": "a"}, "retry_of": "job_9", "cloned_from": None, "not_before": None,
    "estimated_start_at": "2126-01-01T00:00:00.000Z", "estimated_finish_at": "2126-01-02T00:00:00.000Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "needs job_0 (running)"),
        ({"waiting_for": "worker"}, "no worker that is there has what it asks for"),
        ({"waiting_for": "broker"}, "the broker does not answer"),
        ({"waiting_for": "slot", "queue_position": 3}, "place 3 in the queue"),
        ({"waiting_for": "back_off", "not_before": "2026-01-02T03:04:05.678Z"}, "next try after 2026-01-02"),
        ({"status": "running", "waiting_for": None, "request": "stop"}, "asked to stop"),
    ],
)
def test_people_see_what_a_job_waits_for(service: Wire, state: dict[str, Any], said: str) -> None:
    service.on("/api/v1/jobs", says({"data": [WAITING | state], "has_more": False, "next_cursor": None}))
    assert said in " ".join(dsd(service, "jobs", "--group", "maps").stdout.split())
    assert "group=maps" in service.requests[-1][1]


def test_people_see_everything_about_a_job_that_waits(service: Wire) -> None:
    service.on("/api/v1/jobs/job_1", says(WAITING))
    shown = " ".join(dsd(service, "show", "job_1").stdout.split())
    for words in (
        "needs job_0 running",
        "starts in",
        "ends in",
        "priority 5",
        "group maps",
        "team=a",
        "retry of job_9",
    ):
        assert words in shown


WORKER = {
    "name": "one@here", "live": True, "host": "here", "device": "cuda", "devices": ["0", "1"], "memory_gib": 79.6,
    "labels": {"gpu": "h100"}, "job_id": "job_1", "drain": None, "started_at": scenes.AT, "heartbeat_at": scenes.AT,
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "busy"),
        ({"job_id": None}, "idle"),
        ({"drain": "now"}, "draining"),
        ({"drain": "after_job", "job_id": None}, "drained"),
        ({"live": False}, "away"),
    ],
)
def test_people_see_what_a_worker_has_and_does(service: Wire, state: dict[str, Any], said: str) -> None:
    service.on("/api/v1/workers", says({"data": [WORKER | state]}))
    shown = dsd(service, "worker", "list").stdout
    assert all(words in shown for words in ("one@here", "cuda 0 1", "80 GiB", "gpu=h100", said))


TINY = """
kind: train
name: tiny
dataset: {name: streets, size: [32, 48]}
student: {network: espnet}
train: {epochs: 1, batch: 24, threads: 1, log_every: 1}
evaluate: {pictures: 0}
"""


@pytest.mark.slow
def test_ctrl_c_saves_a_run_here_and_the_same_command_goes_on_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(TINY)
    command = [
        sys.executable,
        "-P",
        "-m",
        "client.cli",
        "run",
        str(tmp_path / "job.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if "step 2/" in line:
                first.send_signal(signal.SIGINT)
                break
        _, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert f"dsd run {tmp_path / 'job.yaml'} --out {tmp_path / 'run'}" in said
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "continues" in again.stdout and "parameters" in again.stdout
    assert (tmp_path / "run" / "student" / "model.onnx").exists()


@pytest.mark.slow
def test_a_student_is_scored_here_by_a_file_in_place_of_the_job_files_reference(tmp_path: Path) -> None:
    text = "kind: evaluate\nname: a\ndataset: {name: streets, size: [32, 48]}\nstudent: {model: a}\n"
    (tmp_path / "job.yaml").write_text(text)
    ended = process(
        "run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "run"), "--student", str(save_teacher(tmp_path))
    )
    assert ended.returncode == 0, ended.stderr
    assert "mIoU" in ended.stdout and "parameters" in ended.stdout and "Student   " not in ended.stdout


def test_ready_is_false_where_nothing_listens() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert client.ready() is False


def test_data_check_goes_on_as_the_librarys_command() -> None:
    done = process("data", "check", "streets", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["splits"]["val"]["images"] == 60
    refused = process("data", "check", "nowhere")
    assert refused.returncode == 78 and "There is no dataset named 'nowhere'" in refused.stderr
