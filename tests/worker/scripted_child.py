"""Stands in for `python -m dsd_core run`: behaves as the job's label `script` says, in the core's own file formats.

The words of a script are obeyed from left to right; `tries.txt` in the run folder counts how often it was started.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path

from dsd_core.errors import DivergedError
from dsd_core.events import (
    Checkpoint,
    Cost,
    Evaluated,
    EventFile,
    Failed,
    FileInfo,
    Finished,
    Note,
    Picture,
    Progress,
    Result,
    Score,
    Started,
)

SCORE = Score(miou=0.5, pixel_accuracy=0.75, per_class_iou={"road (0)": 0.5, "sky": None})
COST = Cost(network="espnet", params=1234, flops=5678, latency_ms=1.5, height=64, width=64)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001000500010d0a2db40000000049454e44ae426082"
)


def main(spec_file: Path, out: Path, weights: str | None) -> int:
    spec = json.loads(spec_file.read_text())
    tries = out / "tries.txt"
    with open(tries, "a") as file:
        file.write(f"{os.getpid()} {weights}\n")
    attempt = len(tries.read_text().splitlines())
    emit = EventFile(out / "events.jsonl")
    emit(Started(spec_digest="d" * 64, code_version="1", device="cpu", torch="0", threads=1, total_steps=10))
    for word in spec["labels"]["script"].split():
        code = act(word, attempt, out, emit)
        if code is not None:
            return code
    return 0


def act(word: str, attempt: int, out: Path, emit: EventFile) -> int | None:
    """Obey one word; an integer ends the process with it."""
    word, _, number = word.partition("=")
    if word == "steps":
        for step in range(1, int(number) + 1):
            emit(progress(step))
    elif word == "checkpoint":
        emit(checkpoint(int(number), attempt, out))
    elif word == "student":
        (out / "student").mkdir(exist_ok=True)
        (out / "student" / "model.safetensors").write_bytes(b"weights")
    elif word == "list":
        found = sorted(path.parent.name for path in out.glob("checkpoints/*/manifest.json"))
        emit(Note(message=f"found {' '.join(found)}"))
    elif word == "hang":  # until SIGTERM, then as the core does
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
        emit(Note(message="hanging"))
        time.sleep(120)
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        emit(Note(message="deaf"))
        time.sleep(120)
    elif word == "hang_first" and attempt == 1:
        return act("hang", attempt, out, emit)
    elif word == "stall_first" and attempt == 1:
        faulthandler.register(signal.SIGUSR1)
        (out / "pulse").write_text("1")
        return act("deaf", attempt, out, emit)
    elif word == "wait_for_stop":  # SIGUSR2, as long as it takes
        signal.signal(signal.SIGUSR2, lambda *_: (out / "asked_to_stop").touch())
        (out / "pulse").write_text("1")
        return act("wait_for=asked_to_stop", attempt, out, emit)
    elif word == "take":  # MiB of memory
        taken = bytearray(int(number) * 2**20)
        emit(Note(message=f"took {len(taken)} bytes"))
        return act("hang", attempt, out, emit)
    elif word == "kill_worker":
        os.kill(os.getppid(), signal.SIGKILL)
        return act("deaf", attempt, out, emit)
    elif (word == "killed_first" and attempt == 1) or word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "diverge":
        print("the loss is NaN")
        emit(Failed(code="diverged", message="The loss is NaN.", hint="Lower the learning rate.", field="/train"))
        return DivergedError.exit_code
    elif word == "garbage":
        os.write(emit._fd, b"this is no JSON\n")
    elif word == "wait_for":
        while not (out / number).exists():
            time.sleep(0.02)
    elif word in ("finish", "finish_weak"):
        finish(out, emit, beats_floor=word == "finish")
    return None


def progress(step: int) -> Progress:
    return Progress(
        phase="student",
        step=step,
        steps=10,
        total_step=step,
        total_steps=10,
        epoch=0,
        losses={"loss": 1 / step, "psd": 0.25, "nan": None},
        grad_norms={"psd": 2.0},
        learning_rate=0.1,
        images_per_s=7.0,
        eta_s=3.0,
        system={"cpu_utilization_percentage": 50.0},
    )


def checkpoint(step: int, attempt: int, out: Path) -> Checkpoint:
    """Written as the core does, without syncing; of older ones the newest stays."""
    folder = out / "checkpoints" / f"{step:08d}-{attempt}"
    folder.mkdir(parents=True)
    contents = {"tensors.safetensors": bytes([step]) * 5000, "state.json": b"{}"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    manifest = {n: {"bytes": len(data), "sha256": sha256(data).hexdigest()} for n, data in contents.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for old in sorted(folder.parent.iterdir())[:-2]:
        shutil.rmtree(old)
    return Checkpoint(phase="student", step=step, total_step=step, path=str(folder), bytes=5002, sha256="c" * 64)


def finish(out: Path, emit: EventFile, beats_floor: bool) -> None:
    (out / "pictures").mkdir(exist_ok=True)
    (out / "pictures" / "000010.png").write_bytes(PNG)
    emit(Picture(phase="student", step=10, total_step=10, path="pictures/000010.png", caption="ten"))
    emit(Checkpoint(phase="student", step=10, total_step=10, path="checkpoints/10", bytes=1, sha256="c" * 64))
    emit(Evaluated(subject="student", step=10, total_step=10, images=2, seconds=0.1, **SCORE.model_dump()))
    emit(Finished(result=result(out, beats_floor)))


def result(out: Path, beats_floor: bool) -> Result:
    student = out / "student"
    files = [
        FileInfo(path=path.name, bytes=path.stat().st_size, sha256="a" * 64)
        for path in (sorted(student.iterdir()) if student.exists() else [])
    ]
    return Result(
        student=SCORE,
        student_cost=COST,
        files=files,
        classes=["void", "red", "green"],
        onnx_max_error=0.0,
        dataset_fingerprint="f" * 64,
        spec_digest="d" * 64,
        code_version="1",
        train_seconds=1.0,
        beats_floor=beats_floor,
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    flag = next((flag for flag in ("--teacher", "--student") if flag in arguments), None)
    given = arguments[arguments.index(flag) + 1] if flag else None
    sys.exit(main(Path(arguments[0]), Path(arguments[arguments.index("--out") + 1]), given))
