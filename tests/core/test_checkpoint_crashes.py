"""The power fails at any instruction of the checkpoint writer, and a loader then finds the old state or the new.

In the manner of ALICE (Pillai et al., OSDI 2014): the writer's steps are recorded, and every disk that a crash after
some of them may leave is built. What was synced is there. Of the rest, any part may be: each name that was made, moved
or removed, on its own and in any order; and of each file's data nothing, a half, or all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from dsd_core import checkpoint
from dsd_core.disk import Disk
from tests.core.toy_checkpoints import newest_step, write

Step = tuple[str, Path, bytes | Path | None]
Folder = dict[str, "Folder | bytes"]
FRACTIONS = (0.0, 0.5, 1.0)


class Recording(Disk):
    """Does everything, and remembers it; the kinds of steps in `forgotten` are what a careless writer leaves out."""

    def __init__(self, *forgotten: str) -> None:
        self.forgotten = forgotten
        self.steps: list[Step] = []

    def make_folder(self, folder: Path) -> None:
        self.steps.append(("make", folder, None))
        super().make_folder(folder)

    def write(self, path: Path, data: bytes) -> None:
        self.steps.append(("write", path, data))
        super().write(path, data)

    def sync(self, path: Path, fd: int) -> None:
        kind = "sync folder" if path.is_dir() else "sync"
        if kind not in self.forgotten:
            self.steps.append((kind, path, None))

    def rename(self, old: Path, new: Path) -> None:
        self.steps.append(("rename", old, new))
        super().rename(old, new)

    def remove(self, folder: Path) -> None:
        if folder.exists():
            self.steps += [("unlink", path, None) for path in sorted(folder.iterdir())]
            self.steps.append(("unlink", folder, None))
        super().remove(folder)


def crash_states(steps: list[Step], start: Folder, root: Path) -> Iterator[tuple[int, Folder]]:
    """Every folder `root` that may be found after a crash, with how many steps had been made; `start` is on disk."""
    for made in range(len(steps) + 1):
        past = steps[:made]
        loose = [at for at, step in enumerate(past) if step[0] in _MOVES and not _is_synced(past, at)]
        wet = [at for at, step in enumerate(past) if step[0] == "write" and not _data_is_synced(past, at)]
        for kept, shares in product(product((False, True), repeat=len(loose)), product(FRACTIONS, repeat=len(wet))):
            lost = {at for at, here in zip(loose, kept, strict=True) if not here}
            yield made, _replayed(past, lost, dict(zip(wet, shares, strict=True)), start, root)


_MOVES = ("make", "write", "rename", "unlink")


def _is_synced(past: list[Step], at: int) -> bool:
    """Whether the name that a step made, moved or removed was made durable after it."""
    return ("sync folder", past[at][1].parent, None) in past[at:]


def _data_is_synced(past: list[Step], at: int) -> bool:
    return ("sync", past[at][1], None) in past[at:]


def _replayed(past: list[Step], lost: set[int], shares: dict[int, float], start: Folder, root: Path) -> Folder:
    """The disk after these steps without the names in `lost`, and with a share of the data of some files."""
    names = {root: _copied(start)}  # folders as the process saw them, whether or not their own name was lost
    names |= {root / name: part for name, part in names[root].items() if isinstance(part, dict)}
    for at, (kind, path, more) in enumerate(past):
        parent = names.get(path.parent, {})
        if kind == "make":
            names[path] = {}
        if kind == "rename":
            assert isinstance(more, Path)
            names[more] = names[path]
        if at in lost:
            continue
        if kind == "make":
            parent[path.name] = names[path]
        elif kind == "write":
            assert isinstance(more, bytes)
            parent[path.name] = more[: int(len(more) * shares.get(at, 1.0))]
        elif kind == "rename":
            parent.pop(path.name, None)
            parent[more.name] = names[more]
        elif kind == "unlink":
            parent.pop(path.name, None)
    return names[root]


def _copied(folder: Folder) -> Folder:
    return {name: _copied(part) if isinstance(part, dict) else part for name, part in folder.items()}


def on_disk(folder: Path) -> Folder:
    return {path.name: on_disk(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, content: Folder) -> None:
    folder.mkdir()
    for name, part in content.items():
        if isinstance(part, dict):
            put(folder / name, part)
        else:
            (folder / name).write_bytes(part)


def found_after_crashes(tmp_path: Path, disk: Recording) -> list[tuple[bool, int | None]]:
    """Checkpoint 2 is written over checkpoint 1, of which only one is kept: for each crash, whether the writer had
    returned, and the step that is resumed from."""
    folder = tmp_path / "checkpoints"
    write(folder, 1)
    start = on_disk(folder)
    write(folder, 2, kept=1, disk=disk)
    found: dict[str, int | None] = {}
    outcomes = []
    for place, (made, state) in enumerate(crash_states(disk.steps, start, folder)):
        key = repr(state)
        if key not in found:
            put(tmp_path / str(place), state)
            found[key] = newest_step(tmp_path / str(place), lambda text: None)
        outcomes.append((made == len(disk.steps), found[key]))
    return outcomes


@pytest.mark.fault("F30")
def test_a_crash_at_any_step_of_the_writer_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    outcomes = found_after_crashes(tmp_path, Recording())
    assert {step for _, step in outcomes} == {1, 2}
    assert {step for returned, step in outcomes if returned} == {2}, "what was reported as saved is there"
    assert len(outcomes) > 150


@pytest.mark.fault("F30")
@pytest.mark.parametrize("forgotten", ["sync", "sync folder"])
def test_a_writer_that_forgets_to_sync_loses_both_which_these_crashes_show(forgotten, tmp_path):
    assert None in {step for _, step in found_after_crashes(tmp_path, Recording(forgotten))}


@pytest.mark.fault("F30")
def test_the_folder_of_the_checkpoints_is_durable_with_the_first_of_them(tmp_path):
    disk = Recording()
    write(tmp_path / "run" / "checkpoints", 1, disk=disk)
    assert ("sync folder", tmp_path / "run", None) in disk.steps


@pytest.mark.fault("F30")
@pytest.mark.parametrize("point", ["after_tensors", "after_manifest", "before_rename", "after_rename", "before_prune"])
def test_a_writer_that_ends_at_a_fault_point_leaves_the_old_checkpoint_or_the_new_one(point, tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setenv("DSD_FAULT", f"checkpoint.{point}:raise")
    with pytest.raises(RuntimeError, match=point):
        write(tmp_path, 2, kept=1)
    assert newest_step(tmp_path) == (2 if point in ("after_rename", "before_prune") else 1)
    assert checkpoint.load_newest(tmp_path, pytest.fail) is not None
