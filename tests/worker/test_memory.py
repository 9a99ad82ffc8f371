"""How much RAM a process and its children take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from worker.memory import taken_over

MIB = 2**20
# 200 MiB that a forked child shares, and 50 MiB of the child's own.
SHARES = f"""
import os, sys
shared = b"x" * (200 * {MIB})
if os.fork() == 0:
    own = b"y" * (50 * {MIB})
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", SHARES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert [process.stdout.readline() for _ in range(2)] == [b"up\n", b"up\n"]
    yield process.pid
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


def test_children_count_and_what_they_share_counts_once(family: int) -> None:
    members = [psutil.Process(family), *psutil.Process(family).children()]
    assert sum(member.memory_info().rss for member in members) > 400 * MIB
    taken = taken_over(family, 240 * MIB)
    assert taken is not None and 250 * MIB <= taken < 300 * MIB
    assert taken_over(family, 300 * MIB) is None


def test_a_process_that_has_ended_takes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    assert taken_over(process.pid, 0) is None
