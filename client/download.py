"""One file over HTTP, resumable and verified: bytes go to NAME.part, which takes its name once its sha256 is right."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from client.errors import ApiError, DownloadError, ServiceAway

TRIES = 8
Progress = Callable[[int, int | None], None]


def fetch(http: httpx.Client, path: str, to: Path, progress: Progress, away: Callable[[], ServiceAway]) -> Path:
    """Save `path` as `to`. `progress` gets bytes so far and bytes in all (None where the service does not say).

    Raises ApiError; DownloadError when the bytes have another sha256; ServiceAway after several broken tries.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    part, tag = to.with_name(f"{to.name}.part"), to.with_name(f"{to.name}.part.etag")
    for attempt in range(1, TRIES + 1):
        try:
            _append(http, path, part, tag, progress)
            break
        except httpx.TransportError as error:
            if attempt == TRIES or (isinstance(error, httpx.ConnectError) and attempt == 1):
                raise away() from error
            time.sleep(min(0.2 * 2**attempt, 5.0))
    _verify(part, tag, to)
    part.replace(to)
    tag.unlink(missing_ok=True)
    return to


def _append(http: httpx.Client, path: str, part: Path, tag: Path, progress: Progress) -> None:
    """Ask for what is missing; a file that has changed since comes whole, and the part starts anew."""
    known = tag.read_text() if tag.exists() else ""
    have = part.stat().st_size if part.exists() and known else 0
    headers = {"Range": f"bytes={have}-", "If-Range": known} if have else {}
    with http.stream("GET", path, headers={"Accept-Encoding": "identity", **headers}) as answer:
        if answer.status_code == 416:  # nothing is missing: the connection broke after the last byte
            return
        if answer.status_code >= 400:
            answer.read()
            raise ApiError.of(answer)
        if answer.status_code != 206:
            have = 0
        tag.write_text(answer.headers.get("ETag", ""))
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "r+b" if have else "wb") as file:
            file.truncate(have)
            file.seek(have)
            for (
                chunk
            ) in answer.iter_bytes():  # with a chunk size, bytes held back for it would be lost with the connection
                file.write(chunk)
                have += len(chunk)
                progress(have, total)


def _verify(part: Path, tag: Path, to: Path) -> None:
    promised = tag.read_text().strip().removeprefix("W/").strip('"').removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", promised):
        return
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != promised:
        part.unlink()
        tag.unlink()
        raise DownloadError(
            f"{to.name} arrived damaged: its sha256 is {found}, not {promised}.",
            hint="Download it again; if that happens twice, the file on the service is damaged.",
        )
