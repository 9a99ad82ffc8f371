"""`python -m dsd_core signals`: what a folder holds, without any service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_core.signals.store import Store
from tests.conftest import ROOT
from tests.core.signals.records import KEY, SIZES, fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two entries, one of which was last used in 2001 and is empty."""
    for key, about in (("a1", {"teacher": "old"}), (KEY, {"teacher": "young", "dataset": "camvid"})):
        with Store(tmp_path).open(key, SIZES, about) as entry:
            fill(entry, [] if key == "a1" else [0, 1, 2])
    os.utime(tmp_path / "a1.signals" / "lock", (1e9, 1e9))
    return tmp_path


def signals(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsd_core", "signals", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def keys(folder: Path) -> list[str]:
    return [held.key for held in Store(folder).entries()]


def test_what_a_folder_holds_is_listed_for_people_and_programs(folder):
    first, second, last = signals("list", "--folder", folder).stdout.splitlines()
    assert first.startswith("a1  0/16 records, 0.0 MB, last used 2001-09-09T01:46:40.000Z  teacher old")
    assert second.startswith(f"{KEY}  3/16 records") and second.endswith("teacher young, dataset camvid")
    assert last == f"2 entries, 0.0 MB in {folder}"
    held = json.loads(signals("list", "--folder", folder, "--json").stdout)
    assert [entry["key"] for entry in held["data"]] == ["a1", KEY]
    assert held["bytes"] == sum(entry["bytes"] for entry in held["data"])


def test_what_is_damaged_is_told_and_forgotten(folder):
    data = folder / f"{KEY}.signals" / "data"
    data.write_bytes(bytes(len(data.read_bytes())))
    said = signals("verify", "--folder", folder, "--key", "c0").stdout
    assert said == f"{KEY}  0 records are right, 3 damaged\nWhat was damaged is forgotten.\n"
    (folder / "a1.signals" / "data").unlink()
    assert "a1  damaged" in signals("list", "--folder", folder).stdout
    found = json.loads(signals("verify", "--folder", folder, "--json").stdout)
    assert found["damaged"] == 1 and keys(folder) == [KEY]
    assert signals("verify", "--folder", folder).stdout.endswith("Nothing is damaged.\n")


def test_what_goes_is_said_by_age_key_and_bytes(folder):
    dry = signals("prune", "--folder", folder, "--older-than", 2, "--dry-run").stdout
    assert dry.startswith("a1  0/16") and dry.endswith("would go.\n") and len(keys(folder)) == 2
    assert signals("prune", "--folder", folder, "--to-bytes", "1GB").stdout == "0.0 MB went.\n"
    with Store(folder).open(KEY, SIZES, {}):
        assert f"{KEY}  is in use, and stays" in signals("prune", "--folder", folder, "--to-bytes", "1B").stdout
    assert keys(folder) == [KEY]
    done = json.loads(signals("prune", "--folder", folder, "--key", "c0f", "--json").stdout)
    assert [entry["key"] for entry in done["data"]] == [KEY] and keys(folder) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune"], "Say what shall go"),
        (["prune", "--to-bytes", "many"], "is no number of bytes"),
        (["prune", "--key", "ffff"], "no entry of teacher signals named 'ffff'"),
        (["list", "--folder", "nowhere"], "does not exist"),
    ],
)
def test_what_is_asked_wrongly_is_said(arguments, said, folder):
    told = signals(arguments[0], "--folder", folder, *arguments[1:])
    assert told.returncode and said in told.stderr and "Traceback" not in told.stderr
    assert len(keys(folder)) == 2
