"""Sending a file, or a part of it: Range, If-Range, If-None-Match (RFC 9110), one range at a time.

The length is fixed when the answer begins, so a file that grows meanwhile (a log) is sent up to where it was.
"""

from __future__ import annotations

import re

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from api.errors import RangeNotSatisfiable
from jobs.storage import Stored


def send_file(
    request: Request,
    file: Stored,
    *,
    media_type: str,
    etag: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The file, the range of it that was asked for (206), or 304. Raises RangeNotSatisfiable.

    A Range that cannot be understood, or of several parts, is answered with the whole file, as RFC 9110 allows.
    """
    sent = {"Accept-Ranges": "bytes", **(headers or {})} | ({"ETag": etag} if etag else {})
    if etag and _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=sent)
    wanted = _range(request, file.size, etag)
    first, end = wanted or (0, file.size)
    sent["Content-Length"] = str(end - first)
    if wanted is not None:
        sent["Content-Range"] = f"bytes {first}-{end - 1}/{file.size}"
    status = 200 if wanted is None else 206
    return StreamingResponse(file.read(first, end), status, headers=sent, media_type=media_type)


def _names(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags


def _range(request: Request, size: int, etag: str | None) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole file."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").replace(" ", ""))
    if not found or found.group() == "bytes=-" or not _is_current(request.headers.get("if-range"), etag):
        return None
    first_text, last_text = found.groups()
    if not first_text:
        first, end = max(size - int(last_text), 0), size
    else:
        first, end = int(first_text), min(int(last_text) + 1, size) if last_text else size
        if last_text and int(last_text) < first:
            return None
    if first >= size:
        raise RangeNotSatisfiable(size)
    return first, end


def _is_current(if_range: str | None, etag: str | None) -> bool:
    return if_range is None or if_range == etag
