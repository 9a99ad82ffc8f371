"""What is kept, what is gone, and files that lie in a bucket."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import text

from jobs import db, store
from jobs.storage import Bucket
from tests.api.conftest import JOBS, Service, problem_in, serving
from tests.servers import TestBucket

STORAGE = "/api/v1/storage"
WEIGHTS = bytes(range(256)) * 40
FILE = {"path": "model.safetensors", "bytes": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
PATH = "/api/v1/models/a-student/versions/1/files/model.safetensors"


def registered(service: Service) -> str:
    job_id = service.succeed().job_id
    with db.begin(service.engine) as s:
        store.add_model_version(s, name="a-student", version=1, job_id=job_id, files=[FILE], tags={})
    return job_id


def test_what_the_storage_holds_can_be_asked_listed_and_pruned(service: Service) -> None:
    job_id = service.succeed().job_id
    checkpoint = service.folder(job_id) / "checkpoints" / "00000001-1" / "tensors.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(bytes(100))
    with db.begin(service.engine) as s:
        s.execute(text("UPDATE jobs SET finished_at = '2026-01-01'"))
    held = service.http.get(STORAGE).json()
    assert (held["runs"], held["bytes"], held["checkpoint_bytes"]) == (1, 100, 100)
    assert (held["place"], held["keep_checkpoint_days"]) == (str(service.settings.storage_dir), 7)
    listed = service.http.post(f"{STORAGE}/prune?dry_run=true").json()
    assert listed["dry_run"] and listed["bytes"] == 100 and checkpoint.exists()
    [removal] = service.http.post(f"{STORAGE}/prune").json()["data"]
    assert [removal] == listed["data"] and removal["job_id"] == job_id and not checkpoint.exists()
    assert service.http.get(f"{JOBS}/{job_id}").json()["checkpoints_gone_at"] is not None


def test_what_retention_has_deleted_is_gone_with_a_reason(service: Service) -> None:
    job_id = registered(service)
    with db.begin(service.engine) as s:
        assert store.mark_gone(s, job_id, store.Part.RUN, {})
        assert store.mark_gone(s, job_id, store.Part.STUDENT, {})
    for path in (f"{JOBS}/{job_id}/logs", PATH):
        assert "to free storage" in problem_in(service.http.get(path), 410, "file_gone")["detail"]
    assert service.http.get(PATH.partition("/files")[0]).json()["files_gone_at"] is not None
    body = service.body(kind="distill", teacher={"model": "a-student/1"})
    refused = problem_in(service.http.post(JOBS, json=body), 422, "invalid_weights")
    assert refused["errors"][0]["field"] == "/teacher/model"


def test_files_in_a_bucket_are_sent_whole_and_in_ranges(
    tmp_path: Path, small_camvid: Path, sqlite_url: str, s3: TestBucket
) -> None:
    with serving(tmp_path, small_camvid, sqlite_url, storage=s3.storage) as service:
        assert isinstance(service.http.app.state.storage, Bucket)  # type: ignore[attr-defined]
        job_id = registered(service)
        problem_in(service.http.get(PATH), 410, "file_gone")
        for name, data in (("student/model.safetensors", WEIGHTS), ("log.txt", b"one\ntwo\n")):
            (tmp_path / "file").write_bytes(data)
            s3.objects.put(job_id, name, tmp_path / "file")
        whole = service.http.get(PATH)
        assert (whole.content, whole.headers["etag"]) == (WEIGHTS, f'"{FILE["sha256"]}"')
        part = service.http.get(PATH, headers={"Range": "bytes=300-"})
        assert (part.status_code, part.content) == (206, WEIGHTS[300:])
        assert service.http.get(f"{JOBS}/{job_id}/logs?tail=1").text == "two\n"
        assert service.http.get(STORAGE).json()["bytes"] == len(WEIGHTS) + 8
        s3.line.cut()
        problem_in(service.http.get(PATH), 503, "storage")
