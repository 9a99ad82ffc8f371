"""A checkpoint is whole or absent; a damaged one is passed over and said so; a sick disk is borne with once."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from dsd_core import checkpoint
from dsd_core.disk import Disk
from dsd_core.errors import StorageError
from tests.core.toy_checkpoints import names, newest_step, write


class SickDisk(Disk):
    """Fails at `sync` with each of the errors in turn, 0 for none, and insists on a new file for each write."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def write(self, path: Path, data: bytes) -> None:
        assert not path.exists(), "a file whose sync failed is written and synced again"
        super().write(path, data)

    def sync(self, path: Path, fd: int) -> None:
        error = self.errors.pop(0) if self.errors else 0
        if error:
            raise OSError(error, os.strerror(error))
        super().sync(path, fd)


def writer(folder: Path, warn=pytest.fail, **options) -> checkpoint.Writer:
    return checkpoint.Writer(folder, **{"every_s": 0.0, "warn": warn, **options})


def attempt(writer: checkpoint.Writer, step: int, **options) -> checkpoint.Saved | None:
    return writer.write(step, {"w": torch.full((4,), float(step))}, {"step": step}, **options)


def test_the_newest_checkpoint_comes_back_and_only_the_last_few_stay(tmp_path):
    for step in (1, 2, 30, 31):
        saved = write(tmp_path, step, kept=2)
    tensors, state = checkpoint.load_newest(tmp_path, pytest.fail)
    assert state == {"step": 31} and tensors["w"].tolist() == [31.0] * 4
    assert names(tmp_path) == ["00000030-0", "00000031-0"]
    assert saved.path.name == "00000031-0" and saved.bytes > 0


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nothing", pytest.fail) is None


def test_the_newest_is_that_of_the_last_step_and_then_of_the_last_fence(tmp_path):
    for step, fence in ((7, 2), (7, 10), (6, 11)):
        checkpoint.save(tmp_path, step, {}, {"fence": fence}, fence=fence)
    assert checkpoint.load_newest(tmp_path, pytest.fail)[1] == {"fence": 10}


def test_a_checkpoint_named_without_a_fence_is_read(tmp_path):
    write(tmp_path, 5).path.rename(tmp_path / "00000005")
    assert newest_step(tmp_path) == 5


def test_an_attempt_that_was_given_up_never_removes_what_its_successor_wrote(tmp_path):
    write(tmp_path, 1, fence=1)
    write(tmp_path, 2, fence=2)
    for step in (3, 4):
        write(tmp_path, step, fence=1, kept=1)
    assert names(tmp_path) == ["00000002-2", "00000004-1"]


def test_a_damaged_newest_never_costs_the_checkpoint_that_was_written_after_it(tmp_path):
    write(tmp_path, 5)
    (write(tmp_path, 9).path / "state.json").unlink()
    write(tmp_path, 6, kept=1)
    assert newest_step(tmp_path, lambda text: None) == 6
    write(tmp_path, 9, kept=1)
    assert names(tmp_path) == ["00000009-0"] and newest_step(tmp_path) == 9


@pytest.mark.fault("F32")
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    write(tmp_path, 1)
    whole = write(tmp_path, 2).path
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    drawn = random.Random(0)
    for harm in range(210):
        name, data = drawn.choice(sorted(files.items()))
        damaged = bytearray(data)
        if harm % 3 == 0:
            damaged[drawn.randrange(len(data))] ^= drawn.randrange(1, 256)
        (whole / name).write_bytes(damaged[: drawn.randrange(len(data))] if harm % 3 == 1 else damaged)
        if harm % 3 == 2:
            (whole / name).unlink()
        notes: list[str] = []
        assert newest_step(tmp_path, notes.append) == 1, name
        assert len(notes) == 1 and "00000002-0 is damaged" in notes[0]
        (whole / name).write_bytes(data)
    assert newest_step(tmp_path) == 2


def test_what_a_killed_writer_left_behind_is_no_checkpoint_and_is_removed_but_for_a_later_fence(tmp_path):
    write(tmp_path, 1)
    for name in ("00000009-1.tmp", "00000009-2.tmp", "00000009-3.tmp"):
        shutil.copytree(tmp_path / "00000001-0", tmp_path / name)
    assert newest_step(tmp_path) == 1
    checkpoint.remove_partial(tmp_path, fence=2)
    assert names(tmp_path) == ["00000001-0", "00000009-3.tmp"]


@pytest.mark.fault("F33")
def test_a_folder_that_cannot_be_written_is_a_storage_error_and_harms_nothing(tmp_path):
    write(tmp_path / "c", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file", 2)
    assert newest_step(tmp_path / "c") == 1


@pytest.mark.fault("F31")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_sync_that_fails_publishes_nothing_and_the_next_try_writes_another_file(error, tmp_path):
    for place in range(5):  # each file, the folder, and the folder around it
        folder = tmp_path / str(place)
        write(folder, 1)
        warnings: list[str] = []
        # What was renamed before its last sync failed may be there; it is whole all the same.
        sick = writer(folder, warnings.append, disk=SickDisk(*[0] * place, error))
        assert attempt(sick, 2) is None and len(warnings) == 1 and "Training goes on" in warnings[0]
        assert newest_step(folder) == (1 if place < 4 else 2)
        assert attempt(sick, 3) is not None and newest_step(folder) == 3
        assert not [name for name in names(folder) if name.endswith(".tmp")]


@pytest.mark.fault("F29")
def test_a_second_failure_in_a_row_is_an_error_and_a_success_between_is_forgiven(tmp_path):
    write(tmp_path, 0)
    warnings: list[str] = []
    whole = [0] * 5  # syncs of three files and two folders
    sick = writer(tmp_path, warnings.append, disk=SickDisk(errno.ENOSPC, *whole, errno.ENOSPC, errno.ENOSPC))
    assert [attempt(sick, step) is None for step in (1, 2, 3)] == [True, False, True]
    with pytest.raises(StorageError, match="full"):
        attempt(sick, 4)
    assert len(warnings) == 2 and newest_step(tmp_path) == 2


@pytest.mark.fault("F29")
def test_a_checkpoint_that_is_needed_has_no_second_try(tmp_path):
    with pytest.raises(StorageError, match="full"):
        attempt(writer(tmp_path, disk=SickDisk(errno.ENOSPC)), 1, needed=True)


def test_after_a_failure_the_next_try_waits(tmp_path):
    sick = writer(tmp_path, lambda text: None, disk=SickDisk(errno.EIO), retry_s=60.0)
    assert sick.is_due()
    attempt(sick, 1)
    assert not sick.is_due()
    attempt(sick, 2)
    assert sick.is_due()


@pytest.mark.fault("F29")
def test_a_disk_without_room_for_two_is_refused_before_anything_is_written(tmp_path):
    class Small(Disk):
        def free_bytes(self, folder: Path) -> int:
            return checkpoint.SPARE_BYTES

        def write(self, path: Path, data: bytes) -> None:
            pytest.fail("it is written to")

    with pytest.raises(StorageError, match=r"34 MB are free, and a checkpoint wants 34 MB"):
        write(tmp_path, 1, disk=Small())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    ],
)
def test_a_restored_optimizer_takes_the_very_same_next_step(make):
    def start():
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def step(net, optimizer, seed):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    net = start()
    optimizer = make(net.parameters())
    for seed in range(3):
        step(net, optimizer, seed)
    other = start()
    other.load_state_dict(net.state_dict())
    restored = make(other.parameters())
    checkpoint.restore_optimizer("it", restored, checkpoint.flatten_optimizer("it", optimizer))
    step(net, optimizer, 9)
    step(other, restored, 9)
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
