"""Fault points do nothing until the environment names one, and then exactly what it says, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dsd_core.fault_points import VARIABLE, fault_point

PROGRAM = "from dsd_core.fault_points import fault_point\nfor i in range(3): fault_point('a.b'); print(i, flush=True)"


def passing(fault: str) -> subprocess.Popen[str]:
    """A process that passes `a.b` three times and counts aloud."""
    environment = {**os.environ, VARIABLE: fault}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def test_without_the_variable_nothing_happens(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    fault_point("a.b")


def test_other_names_are_passed(monkeypatch):
    monkeypatch.setenv(VARIABLE, "a.bc:raise,x:kill")
    fault_point("a.b")


def test_raise_names_the_place_and_comes_once(monkeypatch):
    monkeypatch.setenv(VARIABLE, "once.only@2:raise")
    fault_point("once.only")
    with pytest.raises(RuntimeError, match=r"once\.only"):
        fault_point("once.only")
    fault_point("once.only")


def test_sleep_sleeps(monkeypatch):
    monkeypatch.setenv(VARIABLE, "slow.place:sleep=0.05")
    start = time.monotonic()
    fault_point("slow.place")
    assert time.monotonic() - start >= 0.05


def test_an_unknown_action_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "odd.place:explode")
    with pytest.raises(ValueError, match="explode"):
        fault_point("odd.place")


def test_kill_ends_the_process_the_kth_time():
    process = passing("a.b@3:kill")
    counted, _ = process.communicate(timeout=30)
    assert counted.split() == ["0", "1"] and process.returncode == -signal.SIGKILL


def test_stop_holds_the_process_until_it_is_continued():
    process = passing("a.b@2:stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0].split() == ["0", "1", "2"] and process.returncode == 0
