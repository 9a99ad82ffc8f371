"""A process takes no more threads than it has cores, of the machine or of its container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_core.cores import usable_cores
from dsd_core.errors import SpecError

MANY = len(os.sched_getaffinity(0))


def machine(folder: Path, files: dict[str, str], group: str = "0::/") -> tuple[Path, Path]:
    """Control groups with these files, and what says in which one the process is."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = folder / "own"
    own.write_text(f"{group}\n")
    return folder / "cgroup", own


@pytest.mark.parametrize(
    ("files", "group"),
    [
        ({"cpu.max": "100000 100000\n"}, "0::/"),
        ({"cpu.max": "30000 100000\n"}, "0::/"),
        ({"job/cpu.max": "max 100000\n", "cpu.max": "50000 50000\n"}, "0::/job/step"),
        ({"job/step/cpu.max": "100000 100000\n"}, "0::/job/step"),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/docker/abc"),
    ],
    ids=str,
)
def test_a_quota_of_a_core_or_less_is_one_core(files, group, tmp_path) -> None:
    assert usable_cores(*machine(tmp_path, files, group)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000\n"},
        {"cpu.max": "100000000 100000\n"},
        {"other/cpu.max": "100000 100000\n"},
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"cpu.max": "\n"},
    ],
    ids=str,
)
def test_without_a_quota_they_are_those_the_process_may_run_on(files, tmp_path) -> None:
    assert usable_cores(*machine(tmp_path, files)) == MANY
    assert usable_cores(tmp_path / "none", tmp_path / "none") == MANY


def test_no_more_are_used_than_dsd_threads_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_THREADS", "1")
    assert usable_cores() == 1
    monkeypatch.setenv("DSD_THREADS", str(MANY + 1))
    assert usable_cores() == MANY
    assert usable_cores(among=2 * MANY) == 1
    monkeypatch.setenv("DSD_THREADS", str(MANY))
    assert usable_cores(among=2) == max(1, MANY // 2), "it bounds a share, and is not divided"
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("DSD_THREADS", wrong)
        with pytest.raises(SpecError, match="no number of threads"):
            usable_cores()


def test_a_process_that_is_kept_to_one_core_takes_one_thread() -> None:
    code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from dsd_core.cores import usable_cores
print(usable_cores())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1"]
