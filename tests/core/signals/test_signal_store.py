"""What the signal store serves is what was written, whoever was killed, whatever was cut off or flipped; and it stays
within its bytes."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest

from dsd_core.disk import Disk
from dsd_core.errors import StorageError
from dsd_core.fault_points import VARIABLE
from dsd_core.signals import store as module
from dsd_core.signals.locks import LOCKS, Locks, OpenFileLocks, ProcessLocks
from dsd_core.signals.store import Store
from tests.builders import files_up_to
from tests.conftest import ROOT
from tests.core.signals.records import KEY, SIZES, content, fill, found

OTHER = "decaf"
LOCK_KINDS = [kind for kind in (OpenFileLocks, ProcessLocks) if kind in (LOCKS, ProcessLocks)]


@pytest.fixture(params=LOCK_KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Locks]:
    return request.param


def some_bytes(folder: Path, key: str, used_at: float = 0.0, **options: Any) -> int:
    """An entry of two records of 1000 bytes, filled, and last used then; its bytes."""
    store = Store(folder, **options)
    with store.open(key, [1000, 1000], {"teacher": key}) as entry:
        fill(entry)
    if used_at:
        os.utime(folder / f"{key}.signals" / "lock", (used_at, used_at))
    return next(held.bytes for held in store.entries() if held.key == key)


def keys(folder: Path) -> list[str]:
    return sorted(held.key for held in Store(folder).entries())


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".gone")))


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_record_is_absent_until_it_is_written_and_outlives_the_process(tmp_path):
    with Store(tmp_path).open(KEY, SIZES, {"teacher": "t"}) as entry:
        assert entry.missing() == len(SIZES) and found(entry) == [False] * len(SIZES)
        assert fill(entry, [3, 1]) == [3, 1]
        assert fill(entry, [1, 2, 3]) == [2]
        assert (entry.missing(), entry.complete) == (len(SIZES) - 3, False)
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        assert [number for number, here in enumerate(found(entry)) if here] == [1, 2, 3]
        fill(entry)
        assert entry.complete and all(found(entry))


def test_a_record_is_a_read_only_view_and_lives_on_after_the_entry_is_closed(tmp_path):
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        fill(entry)
        record = entry.read(5)
    assert record is not None and record.readonly and record == content(5, SIZES[5])


def test_what_is_held_can_be_listed(tmp_path):
    with Store(tmp_path).open(KEY, SIZES, {"teacher": "t", "views": 8}) as entry:
        fill(entry, [0])
        (held,) = Store(tmp_path).entries()
    assert (held.key, held.about, held.records, held.filled) == (KEY, {"teacher": "t", "views": 8}, len(SIZES), 1)
    assert held.in_use and held.whole and held.bytes >= entry.bytes and held.created_at <= held.used_at
    (later,) = Store(tmp_path).entries()
    assert not later.in_use and later.used_at > held.used_at


def test_a_store_without_a_folder_is_empty(tmp_path):
    store = Store(tmp_path / "none")
    assert (store.entries(), store.verify(), store.prune().removed) == ([], [], ())


def test_what_is_asked_wrongly_is_said(tmp_path):
    store = Store(tmp_path)
    for key, sizes in (("../x", [1]), ("A", [1]), ("", [1]), (KEY, []), (KEY, [4, 0])):
        with pytest.raises(ValueError):
            store.open(key, sizes, {})
    with store.open(KEY, [4, 4], {}) as entry:
        for number in (-1, 2):
            with pytest.raises(IndexError, match="no record"):
                entry.read(number)
        with pytest.raises(ValueError, match="not held"):
            entry.write(0, b"1234")
        with entry.filling([0]), pytest.raises(ValueError, match="4 bytes, not 3"):
            entry.write(0, b"123")
        assert entry.read(0) is None


def test_a_filling_that_fails_leaves_its_records_to_the_next(tmp_path):
    store = Store(tmp_path)
    with store.open(KEY, SIZES, {}) as entry, store.open(KEY, SIZES, {}) as other:
        with pytest.raises(RuntimeError), entry.filling([0, 1]):
            raise RuntimeError
        assert fill(other, [0, 1]) == [0, 1]


# --- several processes ------------------------------------------------------------------------------------------------


class Filler:
    """A process that has the entry open, and goes on when it is told to."""

    def __init__(self, folder: Path, what: str, kind: type[Locks], *options: str, fault: str) -> None:
        command = [sys.executable, "-m", "tests.core.signals.records", folder, what, "--locks", kind.__name__, *options]
        environment = os.environ | ({VARIABLE: fault} if fault else {})
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def hear(self, line: str) -> None:
        assert self.process.stdout is not None and self.process.stdout.readline() == f"{line}\n"

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> list[int]:
        """The records it has filled since."""
        return [int(line) for line in self.process.communicate("\n")[0].split()]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_until_stopped(self) -> None:
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)


@contextmanager
def fillers(
    folder: Path, what: str, kind: type[Locks] = LOCKS, *options: str, count: int = 1, fault: str = ""
) -> Iterator[list[Filler]]:
    with ExitStack() as stack:
        started = []
        for seed in range(count):
            filler = Filler(folder, what, kind, *options, "--seed", str(seed), fault=fault)
            stack.enter_context(filler.process)
            stack.callback(filler.process.kill)
            started.append(filler)
        yield started


def test_processes_that_fill_one_entry_fill_each_record_once(tmp_path, kind):
    slow = ",".join(f"signals.after_data@{time}:sleep=0.1" for time in (1, 3, 5))
    with fillers(tmp_path, "fill", kind, count=3, fault=slow) as started:
        for filler in started:
            filler.hear("ready")
        for filler in started:
            filler.go_on()
        filled = [number for filler in started for number in filler.end()]
    assert sorted(filled) == list(range(len(SIZES)))
    with Store(tmp_path, locks=kind).open(KEY, SIZES, {}) as entry:
        assert all(found(entry))


def test_a_process_that_is_killed_leaves_the_records_it_held_to_the_others(tmp_path, kind):
    store = Store(tmp_path, patience_s=1e6, locks=kind)
    with fillers(tmp_path, "hold", kind) as (holder,), store.open(KEY, SIZES, {}) as entry:
        holder.hear("ready")
        holder.go_on()
        holder.hear("holding")
        assert fill(entry, [4, 5]) == [4, 5], "nobody holds these"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(fill, entry, [0, 1, 2, 3])
            holder.send(SIGKILL)
            assert waiting.result() == [0, 1, 2, 3]
        assert found(entry)[:6] == [True] * 6


def test_who_waits_for_another_that_fills_finds_the_records_there(tmp_path, kind):
    store = Store(tmp_path, patience_s=1e6, locks=kind)
    with fillers(tmp_path, "hold", kind) as (holder,), store.open(KEY, SIZES, {}) as entry:
        holder.hear("ready")
        holder.go_on()
        holder.hear("holding")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(fill, entry, [0, 1, 2, 3, 4])
            holder.go_on()
            assert waiting.result() == [4]


def test_further_records_are_taken_where_they_are_absent_and_nobody_fills_them(tmp_path, kind):
    store = Store(tmp_path, patience_s=1e6, locks=kind)
    with fillers(tmp_path, "hold", kind) as (holder,), store.open(KEY, SIZES, {}) as entry:
        holder.hear("ready")
        fill(entry, [5])
        holder.go_on()
        holder.hear("holding")
        candidates = iter(range(len(SIZES)))
        with entry.filling([6, 9], candidates, 3) as ours:
            assert ours == [6, 9, 4, 7, 8] and next(candidates) == 9, "0 to 3 are held, and 5 is there"


def test_a_process_that_is_killed_between_a_record_and_its_digest_leaves_it_absent(tmp_path):
    with fillers(tmp_path, "fill", fault="signals.after_data@3:kill") as (filler,):
        filler.hear("ready")
        filled = filler.end()
        assert filler.process.returncode == -SIGKILL
    with Store(tmp_path, patience_s=1e6).open(KEY, SIZES, {}) as entry:
        assert sum(found(entry)) == 2 and entry.missing() == len(SIZES) - 2 and filled == []
        fill(entry)
        assert all(found(entry))


def test_who_has_waited_too_long_for_a_stopped_process_fills_the_records_and_they_stay(tmp_path, kind):
    store = Store(tmp_path, patience_s=0.0, locks=kind)
    with fillers(tmp_path, "hold", kind, "--of", "late") as (holder,), store.open(KEY, SIZES, {}) as entry:
        holder.hear("ready")
        holder.go_on()
        holder.hear("holding")
        holder.send(SIGSTOP)
        assert fill(entry, [0, 1, 2, 3]) == [0, 1, 2, 3]
        holder.send(SIGCONT)
        holder.end()
        assert holder.process.returncode == 0
        assert found(entry)[:4] == [True] * 4, "what readers may have had is not written over"


def test_a_record_that_came_while_its_lock_was_taken_is_not_filled_again(tmp_path, kind):
    with fillers(tmp_path, "fill", kind, fault="signals.before_hold:stop") as (filler,):
        filler.hear("ready")
        filler.go_on()
        filler.wait_until_stopped()
        with Store(tmp_path, locks=kind).open(KEY, SIZES, {}) as entry:
            assert len(fill(entry)) == len(SIZES)
        filler.send(SIGCONT)
        assert filler.end() == []


def test_an_entry_that_is_removed_while_it_is_opened_is_made_anew_and_in_use(tmp_path, kind):
    store = Store(tmp_path, locks=kind)
    store.open(KEY, SIZES, {}).close()
    with fillers(tmp_path, "open", kind, fault="signals.before_use:stop") as (user,):
        user.wait_until_stopped()
        assert [held.key for held in store.prune(key=KEY).removed] == [KEY]
        store.open(KEY, SIZES, {}).close()
        user.send(SIGCONT)
        user.hear("ready")
        assert [held.key for held in store.prune(key=KEY).in_use] == [KEY]


def test_an_entry_that_is_opened_while_it_is_removed_stays(tmp_path, kind):
    store = Store(tmp_path, patience_s=0.0, locks=kind)
    store.open(KEY, SIZES, {}).close()
    with fillers(tmp_path, "prune", kind, fault="signals.before_remove:stop") as (pruner,):
        pruner.wait_until_stopped()
        with store.open(KEY, SIZES, {}) as entry:
            pruner.send(SIGCONT)
            assert pruner.end() == [] and keys(tmp_path) == [KEY]
            fill(entry)


def test_an_entry_that_was_made_anew_while_its_forerunner_is_removed_stays(tmp_path, kind):
    store = Store(tmp_path, patience_s=0.0, locks=kind)
    store.open(KEY, SIZES, {}).close()
    with fillers(tmp_path, "prune", kind, fault="signals.before_remove:stop") as (pruner,):
        pruner.wait_until_stopped()
        assert [held.key for held in store.prune().removed] == [KEY]
        store.open(KEY, SIZES, {}).close()
        pruner.send(SIGCONT)
        assert pruner.end() == [] and keys(tmp_path) == [KEY]


def test_a_process_that_is_killed_while_it_makes_an_entry_leaves_none_and_the_next_tidies_up(tmp_path):
    with fillers(tmp_path, "fill", fault="signals.before_rename:kill") as (filler,):
        filler.end()
        assert filler.process.returncode == -SIGKILL
    assert keys(tmp_path) == [] and len(left_over(tmp_path)) == 1
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        assert left_over(tmp_path) == []
        fill(entry)
        assert all(found(entry))


def test_stores_that_open_one_key_at_once_end_with_one_entry(tmp_path, kind):
    def opened(number: int) -> list[int]:
        with Store(tmp_path, locks=kind).open(KEY, SIZES, {}) as entry:
            return fill(entry)

    with ThreadPoolExecutor(8) as pool:
        filled = [number for numbers in pool.map(opened, range(16)) for number in numbers]
    assert sorted(filled) == list(range(len(SIZES)))
    assert keys(tmp_path) == [KEY] and left_over(tmp_path) == []


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_an_entry_given_to_another_process_opens_there(start, tmp_path):
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        fill(entry, [2])
        with get_context(start).Pool(1) as pool:
            assert pool.apply(found, [entry]).count(True) == 1
            assert pool.apply(fill, [entry, [2, 3]]) == [3]
        assert found(entry)[3]


def test_a_forked_child_has_its_own_hold_on_records(tmp_path, kind):
    with Store(tmp_path, patience_s=0.0, locks=kind).open(KEY, SIZES, {}) as entry, entry.filling([0]):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with entry.filling([0, 1]) as absent:
                os.write(writer, bytes(absent))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as told:
            assert told.read() == bytes([0, 1]), "it has waited for its parent in vain"
        assert os.waitpid(child, 0)[1] == 0
        entry.write(0, content(0, SIZES[0]))
        assert entry.read(0) == content(0, SIZES[0])


def test_an_entry_that_is_gone_is_said_in_the_process_that_wants_it(tmp_path):
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        copy = pickle.loads(pickle.dumps(entry))
    Store(tmp_path).prune()
    assert copy.read(0) is None
    with pytest.raises(StorageError, match="no longer"):
        fill(copy)


# --- damage -----------------------------------------------------------------------------------------------------------


class Quick(Disk):
    """One whose power does not fail."""

    def sync(self, path: Path, fd: int) -> None:
        pass


def served_after(damage: Callable[[Path], object], whole: Path, tmp_path: Path) -> tuple[int, int]:
    """How many records of a damaged copy are served, when none of them is wrong, before and after they are filled."""
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    damage(folder / f"{KEY}.signals")
    with Store(folder, disk=Quick()).open(KEY, SIZES, {}) as entry:
        before = sum(found(entry))
        assert entry.missing() == len(SIZES) - before, "a damaged record counts as absent once it was read"
        fill(entry)
        after = sum(found(entry))
    shutil.rmtree(folder)
    return before, after


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with Store(folder).open(KEY, SIZES, {"teacher": "t"}) as entry:
        fill(entry)
    return folder


def flip(name: str, at: int, entry: Path) -> None:
    data = bytearray((entry / name).read_bytes())
    data[at] ^= 1 << at % 8
    (entry / name).write_bytes(data)


@pytest.mark.parametrize("name", ["data", "digests", "about.json"])
def test_a_flipped_bit_is_never_served_and_is_mended_by_filling(name, whole, tmp_path):
    size = (whole / f"{KEY}.signals" / name).stat().st_size
    for at in range(size):
        before, after = served_after(partial(flip, name, at), whole, tmp_path)
        lost = {"data": (0, 1), "digests": (1,), "about.json": (0, len(SIZES))}[name]
        assert len(SIZES) - before in lost and after == len(SIZES)


def cut_off(name: str, left: int, entry: Path) -> None:
    os.truncate(entry / name, left)


@pytest.mark.parametrize("name", ["data", "digests", "about.json", "lock"])
def test_a_file_that_is_cut_off_or_gone_is_never_served_and_is_made_anew(name, whole, tmp_path):
    size = (whole / f"{KEY}.signals" / name).stat().st_size
    cuts: list[Callable[[Path], object]] = [
        *(
            partial(lambda left, entry: os.truncate(entry / name, left), left)
            for left in (0, size // 2, size - 1)
            if size
        ),
        lambda entry: (entry / name).unlink(),
        lambda entry: ((entry / name).unlink(), (entry / name).mkdir()),
        lambda entry: ((entry / name).unlink(), (entry / name).symlink_to("nowhere")),
        lambda entry: (shutil.rmtree(entry), entry.write_text("a file")),
        lambda entry: (shutil.rmtree(entry), entry.mkdir()),
    ]
    for cut in cuts:
        assert served_after(cut, whole, tmp_path) == (0, len(SIZES))
        shutil.copytree(whole, tmp_path / "listed")
        cut(tmp_path / "listed" / f"{KEY}.signals")
        store = Store(tmp_path / "listed")
        assert name == "lock" or [held.whole for held in store.entries()] == [False]
        assert store.verify()[0].key == KEY and keys(store.folder) == []
        shutil.rmtree(tmp_path / "listed")


@pytest.mark.parametrize("name", ["data", "digests"])
def test_a_file_that_is_cut_off_while_it_is_open_costs_records_and_not_the_process(name, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        os.truncate(tmp_path / f"{KEY}.signals" / name, 0)
        assert found(entry) == [False] * len(SIZES)
        fill(entry)
        assert all(found(entry))


def test_a_record_in_the_place_of_another_is_not_served(whole, tmp_path):
    def swap(entry: Path) -> None:
        data, digests = bytearray((entry / "data").read_bytes()), bytearray((entry / "digests").read_bytes())
        assert SIZES[0] == SIZES[5]
        data[0:64], data[5 * 64 : 6 * 64] = data[5 * 64 : 6 * 64], data[0:64]
        digests[0:16], digests[5 * 16 : 6 * 16] = digests[5 * 16 : 6 * 16], digests[0:16]
        (entry / "data").write_bytes(data)
        (entry / "digests").write_bytes(digests)

    assert served_after(swap, whole, tmp_path) == (len(SIZES) - 2, len(SIZES))


def test_an_entry_under_the_name_of_another_is_not_served(whole, tmp_path):
    shutil.copytree(whole / f"{KEY}.signals", tmp_path / f"{OTHER}.signals")
    with Store(tmp_path).open(OTHER, SIZES, {}) as entry:
        assert found(entry) == [False] * len(SIZES)


def test_an_entry_of_other_sizes_is_made_anew(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with Store(tmp_path).open(KEY, SIZES[::-1], {}) as entry:
        assert found(entry) == [False] * len(SIZES)


def test_verifying_forgets_damaged_records_and_removes_a_damaged_entry(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    some_bytes(tmp_path, OTHER)
    store = Store(tmp_path)
    assert {(found.key, found.filled, found.damaged) for found in store.verify()} == {
        (KEY, len(SIZES), 0),
        (OTHER, 2, 0),
    }
    flip("data", 64, tmp_path / f"{KEY}.signals")
    flip("about.json", 0, tmp_path / f"{OTHER}.signals")
    assert [held.whole for held in store.entries()] == [False, True]
    assert [(found.damaged, found.filled) for found in store.verify(KEY)] == [(1, len(SIZES) - 1)]
    assert [(found.key, found.whole, found.damaged) for found in store.verify()] == [(OTHER, False, 0), (KEY, True, 0)]
    assert keys(tmp_path) == [KEY]
    with store.open(KEY, SIZES, {}) as entry:
        assert fill(entry) == [1]


def test_verifying_leaves_alone_what_is_being_filled(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    flip("data", 64, tmp_path / f"{KEY}.signals")
    with Store(tmp_path).open(KEY, SIZES, {}) as entry, entry.filling([1]) as absent:
        assert absent == [1]
        assert [found.damaged for found in Store(tmp_path).verify()] == [0]


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_found_when_the_entry_is_made_and_nothing_is_left_of_it(tmp_path):
    with files_up_to(500), pytest.raises(StorageError, match="takes no file so large"):
        Store(tmp_path).open(KEY, SIZES, {})
    assert keys(tmp_path) == [] and left_over(tmp_path) == []


def test_a_disk_that_is_full_at_a_write_leaves_the_record_absent_until_there_is_room(tmp_path):
    with Store(tmp_path).open(KEY, [600, 600], {}) as entry:
        with files_up_to(1000), pytest.raises(StorageError, match="takes no file so large"):
            fill(entry)
        assert found(entry) == [True, False]
        assert fill(entry) == [1] and all(found(entry))


@pytest.mark.parametrize("step", ["make_folder", "reserve", "write", "sync_folder", "rename"])
def test_a_disk_that_fails_at_any_step_leaves_no_entry_or_a_whole_one(step, tmp_path):
    class Sick(Disk):
        pass

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setattr(Sick, step, fail)
    with pytest.raises(StorageError, match="is full"):
        Store(tmp_path, disk=Sick()).open(KEY, SIZES, {})
    with Store(tmp_path).open(KEY, SIZES, {}) as entry:
        assert left_over(tmp_path) == [] and fill(entry) == list(range(len(SIZES)))


class Small(Disk):
    """With so many bytes left for signals, and those of entries that were removed."""

    def __init__(self, left: int, folder: Path) -> None:
        self.whole = left + self.used(folder)

    def used(self, folder: Path) -> int:
        return sum(held.bytes for held in Store(folder).entries())

    def free_bytes(self, folder: Path) -> int:
        return module.LEFT_FREE_BYTES + self.whole - self.used(folder)


def test_a_disk_without_room_is_said_before_anything_is_removed(tmp_path):
    size = some_bytes(tmp_path, "a1")
    with pytest.raises(StorageError, match="disk that holds") as told:
        Store(tmp_path, disk=Small(10, tmp_path)).open("b1", [1000] * 8, {})
    assert "Free some space" in str(told.value) and keys(tmp_path) == ["a1"]
    with Store(tmp_path, disk=Small(10, tmp_path)).open("b1", [1000], {}) as entry:
        assert entry.bytes < size and keys(tmp_path) == ["b1"], "an old one makes room on the disk too"


# --- the bound --------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first_and_only_as_many_as_must(tmp_path):
    size = sum(some_bytes(tmp_path, key, used_at) for key, used_at in (("a1", 3e8), ("b1", 1e8), ("c1", 2e8)))
    some_bytes(tmp_path, "d1", limit_bytes=size + 100)
    assert keys(tmp_path) == ["a1", "c1", "d1"]
    with Store(tmp_path).open("c1", [1000, 1000], {}):
        pass
    some_bytes(tmp_path, "e1", limit_bytes=size + 100)
    assert keys(tmp_path) == ["c1", "d1", "e1"]


def test_what_another_process_has_open_is_never_removed(tmp_path, kind):
    with fillers(tmp_path, "open", kind) as (user,):
        user.hear("ready")
        size = some_bytes(tmp_path, "b1", locks=kind)
        store = Store(tmp_path, limit_bytes=size + 100, locks=kind)
        with pytest.raises(StorageError, match=r"of which 0\.0 MB are in use"):
            store.open("c1", [1000, 1000], {})
        assert keys(tmp_path) == ["b1", KEY], "what cannot make room enough stays"
        assert [held.key for held in store.prune(key=KEY).in_use] == [KEY]
        pruned = store.prune()
        assert ([held.key for held in pruned.removed], [held.key for held in pruned.in_use]) == (["b1"], [KEY])
        user.end()
    assert [held.key for held in store.prune().removed] == [KEY]


def test_what_this_process_has_open_is_never_removed(tmp_path, kind):
    store = Store(tmp_path, locks=kind)
    with store.open(KEY, SIZES, {}) as entry:
        some_bytes(tmp_path, "b1", locks=kind)
        assert [held.key for held in store.prune().removed] == ["b1"]
        fill(entry)
        assert all(found(entry))


def test_more_than_the_store_may_hold_is_refused_with_what_to_do(tmp_path):
    some_bytes(tmp_path, "a1")
    with pytest.raises(StorageError, match=r"may hold 1\.0 MB") as told:
        Store(tmp_path, limit_bytes=1_000_000).open(KEY, [2_000_000], {})
    assert "fewer views or scales" in str(told.value) and keys(tmp_path) == ["a1"]


def test_pruning_is_by_key_by_age_and_down_to_bytes(tmp_path):
    store = Store(tmp_path)
    sizes = {key: some_bytes(tmp_path, key, used_at) for key, used_at in (("a1", 1e8), ("b1", 2e8), ("c1", 0.0))}

    def pruned(**asked: Any) -> list[str]:
        return [held.key for held in store.prune(**asked, dry_run=True).removed]

    assert pruned(key="b1") == ["b1"]
    assert pruned(unused_s=24 * 3600) == ["a1", "b1"]
    assert pruned(to_bytes=sizes["b1"] + sizes["c1"]) == ["a1"]
    assert pruned(to_bytes=sum(sizes.values())) == []
    assert pruned(unused_s=24 * 3600, to_bytes=0) == ["a1", "b1"]
    assert keys(tmp_path) == ["a1", "b1", "c1"], "these were dry runs"
    assert [held.key for held in store.prune(to_bytes=sizes["c1"]).removed] == ["a1", "b1"]
    assert keys(tmp_path) == ["c1"] and left_over(tmp_path) == []


def test_pruning_removes_what_killed_processes_left_and_nothing_that_is_not_the_store_s(tmp_path):
    for name in ("c0ffee-1.signals.tmp", "c0ffee-2.signals.gone", "photos", "about.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("data")
    Store(tmp_path).prune(dry_run=True)
    assert len(left_over(tmp_path)) == 2
    Store(tmp_path).prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["about.json", "photos", "store.lock"]
