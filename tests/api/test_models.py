"""Registered students: listing them, and downloads that can be continued and trusted."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from client.http import Client
from jobs import db, store
from jobs.storage import storage_of
from tests.api.conftest import Service, problem_in, serving
from tests.api.test_events import served

MODELS = "/api/v1/models"
WEIGHTS = bytes(range(256)) * 5000  # more than one chunk
CARD = b"# a-student\n"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(scope="module")
def file(steady: Service) -> str:
    """The path of the weights of a-student, version 2."""
    register(steady, 1)
    register(steady, 2)
    return f"{MODELS}/a-student/versions/2/files/model.safetensors"


def register(service: Service, version: int) -> str:
    claim = service.succeed()
    student = service.folder(claim.job_id) / "student"
    (student / "sub").mkdir(parents=True)
    contents = {"model.safetensors": WEIGHTS, "README.md": CARD, "sub/ünïcode name.json": b"{}"}
    for name, data in contents.items():
        (student / name).write_bytes(data)
    (student / "unlisted.txt").write_bytes(b"not for download")
    files = [
        {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    ]
    with db.begin(service.engine) as s:
        store.add_model_version(
            s, name="a-student", version=version, job_id=claim.job_id, files=files, tags={"kind": "train"}, miou=0.5
        )
        store.set_aliases(s, "a-student", {"latest-good": version, "champion": 1})
    return claim.job_id


def test_models_are_listed_with_versions_aliases_and_files(service_on_each: Service) -> None:
    assert service_on_each.http.get(MODELS).json() == {"data": []}
    register(service_on_each, 1)
    job_id = register(service_on_each, 2)
    listed = service_on_each.http.get(MODELS).json()["data"]
    assert [(model["name"], model["aliases"]) for model in listed] == [("a-student", {"champion": 1, "latest-good": 2})]
    newest, oldest = listed[0]["versions"]
    assert (newest["version"], newest["aliases"], newest["job_id"], newest["miou"]) == (2, ["latest-good"], job_id, 0.5)
    assert (oldest["version"], oldest["aliases"], oldest["tags"]) == (1, ["champion"], {"kind": "train"})
    assert service_on_each.http.get(f"{MODELS}/a-student").json() == listed[0]
    for name in ("2", "latest-good"):
        assert service_on_each.http.get(f"{MODELS}/a-student/versions/{name}").json() == newest
    for entry in newest["files"]:
        data = service_on_each.http.get(entry["url"]).content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_an_unknown_model_version_or_file_is_not_found_and_those_there_are_are_named(service: Service) -> None:
    problem_in(service.http.get(f"{MODELS}/a-student"), 404, "model_not_found")
    register(service, 1)
    hints = {
        "/a-studant/versions/1": "a-student",
        "/a-student/versions/9": "latest-good, 1",
        "/a-student/versions/best": "latest-good, 1",
        "/a-student/versions/%00": "latest-good, 1",
        "/a-student/versions/99999999999999999999": "latest-good, 1",
        "/a-student/versions/1/files/model.pt": "model.safetensors",
    }
    for path, hint in hints.items():
        assert hint in problem_in(service.http.get(MODELS + path), 404, "model_not_found")["hint"]


@pytest.mark.parametrize(
    "name",
    [
        "unlisted.txt",
        "../log.txt",
        "..%2Flog.txt",
        "%2Fetc%2Fhosts",
        "sub%2F..%2Fmodel.safetensors",
        "sub",
        "",
        "%00",
        ".",
    ],
)
def test_only_files_of_the_manifest_can_be_fetched(steady: Service, file: str, name: str) -> None:
    path = file.removesuffix("model.safetensors")
    assert steady.http.get(path + name).status_code == 404


def test_a_file_has_its_digest_name_and_length(steady: Service, file: str) -> None:
    answer = steady.http.get(file)
    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''model.safetensors"
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_in_a_folder_with_any_name_can_be_fetched(steady: Service, file: str) -> None:
    answer = steady.http.get(file.replace("model.safetensors", "sub/%C3%BCn%C3%AFcode%20name.json"))
    assert (answer.content, answer.headers["content-type"]) == (b"{}", "application/json")
    assert "%C3%BCn%C3%AFcode%20name.json" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, len(WEIGHTS)),
        ("bytes=-7", len(WEIGHTS) - 7, len(WEIGHTS)),
        ("bytes=5-99999999", 5, len(WEIGHTS)),
        ("bytes=-99999999", 0, len(WEIGHTS)),
    ],
)
def test_a_range_is_answered_with_that_part(steady: Service, file: str, asked: str, first: int, end: int) -> None:
    answer = steady.http.get(file, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[first:end])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(WEIGHTS)}"
    assert answer.headers["content-length"] == str(end - first)
    assert answer.headers["etag"] == f'"{SHA256}"'


@pytest.mark.parametrize("asked", [f"bytes={len(WEIGHTS)}-", "bytes=99999999-", "bytes=-0"])
def test_a_range_after_the_end_is_refused_with_the_size(steady: Service, file: str, asked: str) -> None:
    answer = steady.http.get(file, headers={"Range": asked})
    problem_in(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(WEIGHTS)}"


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=0-1,5-6", "bytes=٣-"])
def test_a_range_that_says_nothing_is_answered_with_the_whole(steady: Service, file: str, asked: str) -> None:
    answer = steady.http.get(file, headers={"Range": asked.encode()})
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


def test_a_continued_download_gets_the_whole_where_the_file_has_changed(steady: Service, file: str) -> None:
    same = steady.http.get(file, headers={"Range": "bytes=5-", "If-Range": f'"{SHA256}"'})
    other = steady.http.get(file, headers={"Range": "bytes=5-", "If-Range": '"0000"'})
    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize("known", [f'"{SHA256}"', f'W/"{SHA256}"', f'"0", "{SHA256}"', "*"])
def test_a_file_that_is_known_is_not_sent_again(steady: Service, file: str, known: str) -> None:
    answer = steady.http.get(file, headers={"If-None-Match": known})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert steady.http.get(file, headers={"If-None-Match": '"0"'}).status_code == 200


def test_a_file_named_by_an_alias_is_not_kept_by_caches(steady: Service, file: str) -> None:
    assert "immutable" in steady.http.get(file).headers["cache-control"]
    by_alias = steady.http.get(file.replace("/2/", "/latest-good/"))
    assert (by_alias.content, by_alias.headers["cache-control"]) == (WEIGHTS, "private, no-cache")


@pytest.mark.parametrize("damage", ["removed", "shorter", "link"])
def test_a_file_that_is_not_as_it_was_written_is_gone(service: Service, damage: str) -> None:
    path = service.folder(register(service, 1)) / "student" / "model.safetensors"
    path.unlink()
    if damage == "shorter":
        path.write_bytes(WEIGHTS[:-1])
    if damage == "link":
        path.symlink_to("/etc/passwd")
    answer = service.http.get(f"{MODELS}/a-student/versions/1/files/model.safetensors")
    assert str(service.settings.home) not in str(problem_in(answer, 410, "file_gone"))


def test_the_client_downloads_and_continues(steady: Service, file: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.safetensors"
    target.parent.mkdir()
    target.with_name("model.safetensors.part").write_bytes(WEIGHTS[:1000])
    target.with_name("model.safetensors.part.etag").write_text(f'"{SHA256}"')
    seen: list[int] = []
    with served(steady) as url, Client(url) as client:
        client.download("a-student", "latest-good", "model.safetensors", target, lambda done, _: seen.append(done))
    assert target.read_bytes() == WEIGHTS
    assert seen[0] > 1000


def test_downloads_want_the_key(tmp_path: Path, small_camvid: Path, sqlite_url: str) -> None:
    with serving(tmp_path, small_camvid, sqlite_url, api_key="s3cret") as service:
        service.http.headers["Authorization"] = "Bearer s3cret"
        register(service, 1)
        path: Any = f"{MODELS}/a-student/versions/1/files/README.md"
        assert service.http.get(path).content == CARD
        del service.http.headers["Authorization"]
        problem_in(service.http.get(path), 401, "unauthorized")


def test_a_file_is_read_in_few_pieces_and_never_whole(service: Service) -> None:
    size = 10 * 2**20 + 7
    claim = service.succeed()
    (service.folder(claim.job_id) / "large.onnx").write_bytes(bytes(size))
    stored = storage_of(service.settings).file(claim.job_id, "large.onnx")
    assert stored is not None
    pieces = [len(piece) for piece in stored.read(0, size)]
    assert sum(pieces) == size
    assert len(pieces) <= 11 and max(pieces) <= 2 * 2**20
