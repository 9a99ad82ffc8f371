"""Reading the body of a request: JSON within bounds, then a JobSpec, a change of one, or wishes for a job.

A body is refused before it costs much: too many bytes, other than JSON, nested too deep, too many values, numbers that
are not finite, text that a database cannot hold. The bounds are far above any real job.
"""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from api.errors import BodyRefused, BodyTooLarge, WrongFields, WrongMediaType
from api.schemas import JobWishes, Json
from dsd_core.field_problems import field_problems
from dsd_core.spec import JobSpec

DEPTH = 20
VALUES = 10_000
LARGEST_INTEGER = 2**63


MERGE_PATCH = "application/merge-patch+json"


async def read_spec(request: Request) -> JobSpec:
    """The request's body as a job. Raises WrongFields, BodyRefused, BodyTooLarge and WrongMediaType."""
    return as_spec(await _json(request))


async def read_patch(request: Request) -> Json:
    """The request's body as an RFC 7396 merge patch of an object; no body changes nothing. Raises as `read_spec`."""
    patch = await _json(request, MERGE_PATCH, nothing={})
    if not isinstance(patch, dict):
        raise BodyRefused(
            "The body is no object of changes.", hint='Send the fields that change: {"train": {"epochs": 3}}.'
        )
    return patch


async def read_wishes(request: Request) -> JobWishes:
    """The request's body as what a job shall have from now on. Raises as `read_spec`."""
    try:
        return JobWishes.model_validate(await _json(request, MERGE_PATCH))
    except ValidationError as error:
        raise WrongFields(field_problems(error), "change of the job") from error


def as_spec(data: Any) -> JobSpec:
    """A job from JSON. Raises WrongFields."""
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise WrongFields(field_problems(error)) from error


def strict_json(body: bytes) -> Any:
    """Parse JSON. Raises BodyRefused that says what is wrong and where."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_such_number, object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise BodyRefused(f"The body is not UTF-8: byte {error.start} cannot be read.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BodyRefused(f"The body is not JSON: {error.msg} at {where}.") from error
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # a number of thousands of digits
        raise BodyRefused("The body has a number that is too long.") from error
    _check_values(value)
    return value


async def _json(request: Request, *further_types: str, nothing: Any = None) -> Any:
    """The body as JSON; `nothing` where there is no body and that has a meaning."""
    body = await _bytes(request, request.app.state.settings.max_body_bytes)
    if not body and nothing is not None:
        return nothing
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("application/json", *further_types):
        raise WrongMediaType(
            f"The body is sent as {media_type or 'nothing in particular'}.", hint="Send Content-Type: application/json."
        )
    return strict_json(body)


async def _bytes(request: Request, limit: int) -> bytes:
    too_large = BodyTooLarge(f"The body is larger than {limit} bytes.", hint="DSD_MAX_BODY_BYTES sets the limit.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _no_such_number(text: str) -> Any:
    raise BodyRefused(f"The body has the number {text}, which JSON does not have.")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the pairs; the same key twice would silently lose a value."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BodyRefused(f"The body has the field {key!a} twice in one object.")
        found[key] = value
    return found


def _check_values(value: Any) -> None:
    waiting: list[tuple[Any, int]] = [(value, 1)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if depth > DEPTH:
            raise _too_deep()
        if seen > VALUES:
            raise BodyRefused(f"The body has more than {VALUES} values.")
        if isinstance(item, dict):
            waiting += [(part, depth + 1) for part in item.values()]
            waiting += [(key, depth + 1) for key in item]
        elif isinstance(item, list):
            waiting += [(part, depth + 1) for part in item]
        else:
            _check_scalar(item)


def _check_scalar(item: Any) -> None:
    if isinstance(item, str) and ("\0" in item or any("\ud800" <= char <= "\udfff" for char in item)):
        raise BodyRefused(f"The text {item[:40]!a} has characters that are none: NUL or half a surrogate pair.")
    if isinstance(item, float) and not math.isfinite(item):
        raise BodyRefused("The body has a number that is too large.")
    if isinstance(item, int) and abs(item) > LARGEST_INTEGER:
        raise BodyRefused("The body has an integer beyond 64 bits.")


def _too_deep() -> BodyRefused:
    return BodyRefused(f"The body is nested deeper than {DEPTH} levels.")
