"""Registered students and their files."""

from __future__ import annotations

import base64
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from api.deps import Database, StorageOf
from api.errors import FileGone, ModelNotFound
from api.files import send_file
from api.registry import find_version
from api.schemas import Model, ModelFile, Models, ModelVersion
from jobs import db, store
from jobs.tables import ModelRow

router = APIRouter(tags=["models"])

MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
}
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file. Its ETag is its sha256.", "content": {"application/octet-stream": {}}},
    206: {"description": "The range of it that was asked for."},
    304: {"description": "The file named in If-None-Match is this one."},
}


@router.get("/models")
def list_models(engine: Database) -> Models:
    """Registered models with their versions, the newest first, and aliases."""
    with db.reading(engine) as s:
        rows, aliases = store.list_models(s), store.model_aliases(s)
    return Models(
        data=[_model(name, list(versions), aliases) for name, versions in groupby(rows, lambda row: row.name)]
    )


@router.get("/models/{name}")
def get_model(name: str, engine: Database) -> Model:
    """A registered model: its versions, the newest first, and aliases."""
    with db.reading(engine) as s:
        rows, aliases = store.list_models(s), store.model_aliases(s)
    mine = [row for row in rows if row.name == name]
    if not mine:
        raise ModelNotFound(f"There is no registered model {name[:100]!r}.", hint="GET /api/v1/models lists them.")
    return _model(name, mine, aliases)


@router.get("/models/{name}/versions/{version}")
def get_version(name: str, version: str, engine: Database) -> ModelVersion:
    """A version by its number or an alias such as `latest-good`, with the list of its files."""
    with db.reading(engine) as s:
        row = find_version(s, name, version)
        return _version(row, store.model_aliases(s).get(name, {}))


@router.get("/models/{name}/versions/{version}/files/{file:path}", response_class=Response, responses=FILE_RESPONSES)
def get_file(name: str, version: str, file: str, request: Request, engine: Database, storage: StorageOf) -> Response:
    """A file of a registered student, such as `model.safetensors` or `model.onnx`; a download can be continued."""
    with db.reading(engine) as s:
        row = find_version(s, name, version)
    entry = next((entry for entry in row.files if entry["path"] == file), None)
    if entry is None:
        known = ", ".join(entry["path"] for entry in row.files)
        raise ModelNotFound(f"{name}/{row.version} has no file {file[:200]!r}.", hint=f"It has {known}.")
    if row.files_gone_at is not None:
        raise FileGone(
            f"The files of {name}/{row.version} were deleted to free storage.", hint="Run the job again to get them."
        )
    stored = storage.file(row.job_id, f"student/{file}")
    if stored is None or stored.size != entry["bytes"]:
        raise FileGone(
            f"{file} of {name}/{row.version} is not in the storage as it was written.",
            hint="It was deleted or changed there; run the job again.",
        )
    return send_file(
        request,
        stored,
        media_type=MEDIA_TYPES.get(PurePosixPath(file).suffix, "application/octet-stream"),
        etag=f'"{entry["sha256"]}"',
        headers=_file_headers(file, entry["sha256"], moving=not version.isdecimal()),
    )


def _file_headers(file: str, sha256: str, *, moving: bool) -> dict[str, str]:
    """`moving`: the version was named by an alias, which may stand for another tomorrow."""
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    return {
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(PurePosixPath(file).name)}",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache" if moving else "private, max-age=86400, immutable",
    }


def _model(name: str, rows: list[ModelRow], aliases: dict[str, dict[str, int]]) -> Model:
    mine = aliases.get(name, {})
    return Model(name=name, aliases=mine, versions=[_version(row, mine) for row in rows])


def _version(row: ModelRow, aliases: dict[str, int]) -> ModelVersion:
    base = f"/api/v1/models/{quote(row.name, safe='')}/versions/{row.version}/files"
    return ModelVersion(
        name=row.name,
        version=row.version,
        aliases=sorted(alias for alias, version in aliases.items() if version == row.version),
        miou=row.miou,
        job_id=row.job_id,
        tags=row.tags,
        files=[ModelFile.model_validate({**entry, "url": f"{base}/{quote(entry['path'])}"}) for entry in row.files],
        created_at=row.created_at,
        files_gone_at=row.files_gone_at,
    )
