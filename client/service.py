"""A service for as long as the demo needs one: `python -m deploy.up` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.home import running
from client.http import Client
from client.local import need, program
from dsd_core.errors import DsdError
from dsd_core.parent_death import die_with_parent

Json = dict[str, Any]
START_S = 120.0
STOP_S = 90.0


class NotStarted(DsdError):
    """The service did not start."""

    exit_code = 1


@contextmanager
def started(home: Path, *, keep: bool) -> Iterator[Json]:
    """Start a service on `home`, wait until it takes jobs, yield its pid and URLs. Stops it at the end unless `keep`.

    Raises NotStarted with what the service said.
    """
    need("celery", "all", "Running the service here")
    log = home / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            program("deploy.up", "--home", str(home)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None if keep else die_with_parent(),
        )
    try:
        yield _wait(home, process, log)
    except BaseException:
        _stop(process)
        raise
    if not keep:
        _stop(process)


def _wait(home: Path, process: subprocess.Popen[bytes], log: Path) -> Json:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotStarted(log.read_text(errors="replace").strip() or "The service ended at its start.")
        address = running(home)
        if address and address["pid"] == process.pid:
            with Client(address["api_url"]) as client:
                if client.ready():
                    return address
        time.sleep(0.2)
    raise NotStarted(f"The service is not ready after {START_S:.0f} s.", hint=f"Its logs are in {log.parent}.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """In good order; a Ctrl-C meanwhile, or patience at its end, kills."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.kill(process.pid, signal.SIGTERM)
        process.wait(10)
