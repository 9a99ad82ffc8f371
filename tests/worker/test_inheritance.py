"""A retry goes on where the job before it stood."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_core.errors import StorageError
from jobs import db, store
from jobs.status import Reason
from tests.worker.service import Service
from worker.inheritance import inherit


def checkpoint(folder: Path, name: str, text: str) -> None:
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "state.json").write_text(text)


def checkpoints(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in (folder / "checkpoints").glob("*/state.json")}


def test_checkpoints_come_from_the_nearest_job_that_has_some_and_are_whole(tmp_path: Path) -> None:
    empty, near, far, mine = (tmp_path / name for name in ("empty", "near", "far", "mine"))
    for name, text in (("00000100-2", "first"), ("00000200-2", "older"), ("00000200-3", "newer"), ("9-1.tmp", "half")):
        checkpoint(near, name, text)
    checkpoint(far, "00000300-1", "far")
    inherit(mine, [folder / "checkpoints" for folder in (empty, near, far)])
    assert checkpoints(mine) == {"00000100-0": "first", "00000200-0": "newer"}
    state = mine / "checkpoints" / "00000100-0" / "state.json"
    assert state.samefile(near / "checkpoints" / "00000100-2" / "state.json"), "no bytes are copied"


def test_a_job_with_checkpoints_of_its_own_keeps_to_them(tmp_path: Path) -> None:
    old, mine = tmp_path / "old", tmp_path / "mine"
    checkpoint(old, "00000300-1", "old")
    checkpoint(mine, "00000100-1", "mine")
    inherit(mine, [old / "checkpoints"])
    assert checkpoints(mine) == {"00000100-1": "mine"}


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    checkpoint(tmp_path / "old", "00000300-1", "old")
    (tmp_path / "mine").write_text("a file in the place of the folder")
    with pytest.raises(StorageError, match="checkpoints of the job before"):
        inherit(tmp_path / "mine", [tmp_path / "old" / "checkpoints"])


def test_a_retry_of_a_retry_that_never_started_goes_on_from_the_first_job(service: Service) -> None:
    first = service.submit("diverge")
    assert service.run(first) is Reason.DIVERGED
    checkpoint(service.folder(first), "00000002-1", "two steps")
    second = retried(service, first)
    service.cancel(second)
    third = retried(service, second)
    service.run(third)
    assert checkpoints(service.folder(third)) == {"00000002-0": "two steps"}
    assert not service.folder(second).exists()


def retried(service: Service, job_id: str) -> str:
    with db.begin(service.engine) as s:
        row, spec = store.retryable(s, job_id)
        return store.submit(s, spec, max_attempts=1, retry_of=row.id)[0].id
