"""Programs of this installation that need more than the client does, as processes of their own: trainer and service."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from client.view import JobView
from deploy.watchdog import kill_group
from dsd_core.errors import DsdError
from dsd_core.events import read_lines
from dsd_core.parent_death import die_with_parent

Json = dict[str, Any]
INTERRUPTED = 75  # a training process that was asked to stop and has saved its checkpoint


class NotInstalled(DsdError):
    """A part of dsd is not installed here."""

    exit_code = 1


class RunFailed(DsdError):
    """A training process ended without a result."""

    exit_code = 1


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this installation, wherever the user stands."""
    return [sys.executable, "-P", "-m", module, *arguments]


def need(module: str, extra: str, purpose: str) -> None:
    """Raises NotInstalled unless `module` can be imported; it is not imported here."""
    if importlib.util.find_spec(module) is None:
        raise NotInstalled(
            f"{purpose} needs {module}, which is not installed in {sys.prefix}.",
            hint=f"Install it with `pip install 'dsd[{extra}]'`.",
        )


def replace_process(command: Sequence[str]) -> None:
    """Go on as another program; its exit code is ours."""
    sys.stdout.flush()
    os.execve(command[0], list(command), {**os.environ, "DSD_PROGRAM": "dsd"})


def run(spec: Json, out: Path, view: JobView, paths: dict[str, Path | None]) -> int:
    """Do a job in a child process and show its events. Its exit code: 75 after a Ctrl-C, with the checkpoint saved.

    `paths`: weights of `teacher` or `student` that stand in for the spec's, such as a registered model's that was
    downloaded, and a folder as `store` of signals, which further runs share.
    """
    out.mkdir(parents=True, exist_ok=True)
    job_file = out / "spec.json"
    job_file.write_text(json.dumps(spec, indent=2) + "\n")
    offset = _end_of_lines(out / "events.jsonl")
    given = [part for role, path in paths.items() if path for part in (f"--{role}", str(path.absolute()))]
    process = _start(program("dsd_core", "run", str(job_file), "--out", str(out), *given), out / "log.txt")
    stops = _Stops(process)
    with view:
        view.follow(_events(out / "events.jsonl", offset, process))
    stops.restore()
    return process.wait()


def failed(error: Json | None, log: Path, code: int) -> RunFailed:
    """Why a training process ended with `code`: what its last event said, else the end of its log."""
    if error:
        return RunFailed(error["message"], field=error.get("field"), hint=error.get("hint"))
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return RunFailed(f"The training process ended with exit code {code}.", hint=f"The end of {log}:\n{tail}")


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent(),
        )


class _Stops:
    """While it lasts, the first Ctrl-C (or SIGTERM) asks the process to save and stop, the second kills it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._asked = process, False
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        if self._asked:
            kill_group(self._process.pid, signal.SIGKILL)
            return
        self._asked = True
        print("\nStopping: the run saves a checkpoint first. Ctrl-C again kills it.", file=sys.stderr)
        self._process.terminate()


def _events(path: Path, offset: int, process: subprocess.Popen[bytes]) -> Iterator[Json]:
    """Events as they are written, until the process has ended and all of them are read."""
    while True:
        ended = process.poll() is not None
        for line, after in read_lines(path, offset):
            offset = after
            yield json.loads(line)
        if ended:
            return
        time.sleep(0.1)


def _end_of_lines(path: Path) -> int:
    """The offset behind the events of earlier runs in the same folder."""
    return max((after for _, after in read_lines(path)), default=0)
