"""Keeps services running: starts them in order, starts them again when they end, stops them in reverse order."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.home import UpError, log_path, log_tail, open_log
from deploy.services import Service
from deploy.watchdog import Watchdog, kill_group
from dsd_core.parent_death import die_with_parent

TICK_S = 0.1
GATE_S = 90.0  # a service the others wait for must be healthy within this time
TRIES = 4  # ends in a row before it was ever healthy, after which a service is given up
STEADY_S = 60.0  # after running this long a service has earned quick restarts again
LONGEST_PAUSE_S = 30.0

Say = Callable[[Service, str, str], None]  # (service, state, detail); states: starting, ready, ended, stopped, killed


@dataclass
class Child:
    """A service and the process that runs it now."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_check_at: float = 0.0
    next_start_at: float = 0.0
    ends_in_a_row: int = 0
    ready: bool = False
    ever_ready: bool = False


class Supervisor:
    """`stops_asked` counts the signals that asked to stop: one stops in good order, a second one kills."""

    def __init__(self, home: Path, watchdog: Watchdog, env: dict[str, str], say: Say) -> None:
        self.home, self.env, self.say = home, env, say
        self.stops_asked = 0
        self._watchdog = watchdog
        self._children: list[Child] = []

    def ask_to_stop(self, *_: object) -> None:
        self.stops_asked += 1

    def start(self, services: Sequence[Service]) -> None:
        """Start each; wait for the health of those that others need. Raises UpError. Ends early when asked to stop."""
        for service in services:
            child = Child(service)
            self._children.append(child)
            self._spawn(child)
            deadline = time.monotonic() + GATE_S
            while service.gate and not child.ready and not self.stops_asked:
                if time.monotonic() > deadline:
                    raise UpError(f"{service.name} is not healthy after {GATE_S:.0f} s.", hint=self._log_hint(service))
                self.tick()
            if self.stops_asked:
                return

    def run(self) -> None:
        """Watch over all children until asked to stop."""
        while not self.stops_asked:
            self.tick()

    def tick(self) -> None:
        """Look at every child once, then wait a moment."""
        for child in self._children:
            if child.process is None:
                if time.monotonic() >= child.next_start_at:
                    self._spawn(child)
            elif child.process.poll() is not None:
                self._note_end(child)
            elif not child.ready:
                self._check_health(child)
        time.sleep(TICK_S)

    def stop(self) -> None:
        """Stop all children, the last started first; kill what is left when asked a second time."""
        for child in reversed(self._children):
            if child.process is not None:
                self._stop(child, child.process)

    def _spawn(self, child: Child) -> None:
        service, log = child.service, open_log(self.home, child.service.name)
        try:
            child.process = subprocess.Popen(
                service.argv,
                env=self.env | service.env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise UpError(f"{service.name} cannot be started: {error}.") from error
        finally:
            os.close(log)
        self._watchdog.guard(child.process.pid)
        child.started_at = time.monotonic()
        child.ready = False
        self.say(service, "starting", f"process {child.process.pid}")

    def _check_health(self, child: Child) -> None:
        if time.monotonic() < child.next_check_at:
            return
        child.ready = child.service.healthy is None or child.service.healthy()
        child.next_check_at = time.monotonic() + 0.2
        if child.ready:
            child.ever_ready = True
            self.say(child.service, "ready", f"after {time.monotonic() - child.started_at:.1f} s")

    def _note_end(self, child: Child) -> None:
        process, service = child.process, child.service
        assert process is not None
        self._sweep(process.pid)
        child.process = None
        steady = time.monotonic() - child.started_at > STEADY_S
        child.ends_in_a_row = 1 if steady else child.ends_in_a_row + 1
        if not child.ever_ready and child.ends_in_a_row >= TRIES:
            raise UpError(
                f"{service.name} ended {TRIES} times at its start ({_ending(process.returncode)}).",
                hint=self._log_hint(service),
            )
        pause_s = min(0.5 * 2 ** (child.ends_in_a_row - 1), LONGEST_PAUSE_S)
        child.next_start_at = time.monotonic() + pause_s
        self.say(service, "ended", f"{_ending(process.returncode)}; starting it again in {pause_s:g} s")

    def _stop(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None and self.stops_asked < 2:
            if child.service.stop_group:
                kill_group(process.pid, signal.SIGTERM)
            else:
                process.terminate()
            self._wait(process, child.service.stop_s)
        killed = process.poll() is None
        self._sweep(process.pid)
        process.wait()
        child.process = None
        self.say(child.service, "killed" if killed else "stopped", "")

    def _wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while process.poll() is None and time.monotonic() < deadline and self.stops_asked < 2:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK_S)

    def _sweep(self, group: int) -> None:
        kill_group(group, signal.SIGKILL)
        self._watchdog.release(group)

    def _log_hint(self, service: Service) -> str:
        return (
            f"The end of {log_path(self.home, service.name)}:\n{log_tail(self.home, service.name)}"
            if log_tail(self.home, service.name)
            else f"Its log is {log_path(self.home, service.name)}."
        )


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
