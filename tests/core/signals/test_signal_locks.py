"""Locks on the bytes of a file: both kinds keep others out, in this process and in others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsd_core.signals.locks import LOCKS, Locks, ProcessLocks
from tests.conftest import ROOT

KINDS = list(dict.fromkeys([LOCKS, ProcessLocks]))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Locks]:
    return request.param


def other_process_gets(kind: type[Locks], path: Path, at: int, *, exclusive: bool) -> bool:
    code = (
        f"from pathlib import Path; from dsd_core.signals.locks import {kind.__name__} as Kind;"
        f"print(Kind(Path({str(path)!r})).try_lock({at}, exclusive={exclusive}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout == "True\n"


def test_a_byte_has_one_exclusive_holder_and_its_neighbour_is_free(kind, tmp_path):
    path = tmp_path / "lock"
    mine, theirs = kind(path, create=True), kind(path)
    assert mine.try_lock(5, exclusive=True)
    assert not theirs.try_lock(5, exclusive=True) and not theirs.try_lock(5, exclusive=False)
    assert theirs.try_lock(6, exclusive=True)
    assert not other_process_gets(kind, path, 5, exclusive=False)
    mine.unlock(5)
    assert other_process_gets(kind, path, 5, exclusive=True)
    assert theirs.try_lock(5, exclusive=True)
    mine.close()
    theirs.close()


def test_a_byte_has_many_shared_holders_and_the_last_one_frees_it(kind, tmp_path):
    path = tmp_path / "lock"
    mine, theirs = kind(path, create=True), kind(path)
    assert mine.try_lock(0, exclusive=False) and theirs.try_lock(0, exclusive=False)
    assert other_process_gets(kind, path, 0, exclusive=False)
    theirs.close()
    assert not other_process_gets(kind, path, 0, exclusive=True), "closing one takes nothing from the other"
    mine.close()
    assert other_process_gets(kind, path, 0, exclusive=True)


def test_unlocking_what_is_not_held_frees_nobody_else_s(kind, tmp_path):
    path = tmp_path / "lock"
    mine, theirs = kind(path, create=True), kind(path)
    assert mine.try_lock(3, exclusive=True)
    theirs.unlock(3)
    assert not theirs.try_lock(3, exclusive=True) and not other_process_gets(kind, path, 3, exclusive=True)
    mine.close()
    theirs.close()


def test_a_file_that_is_not_there_is_made_only_when_asked(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        kind(tmp_path / "lock")
    kind(tmp_path / "lock", create=True).close()
    assert (tmp_path / "lock").exists()
