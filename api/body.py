"""Reading a job from a request: JSON within bounds, then a JobSpec.

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
from dsd_core.field_problems import field_problems
from dsd_core.spec import JobSpec

DEPTH = 20
VALUES = 10_000
LARGEST_INTEGER = 2**63


async def read_spec(request: Request) -> JobSpec:
    """The request's body as a job. Raises WrongFields, BodyRefused, BodyTooLarge and WrongMediaType."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongMediaType(
            f"The body is sent as {media_type or 'nothing in particular'}.", hint="Send Content-Type: application/json."
        )
    data = strict_json(await _bytes(request, request.app.state.settings.max_body_bytes))
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
