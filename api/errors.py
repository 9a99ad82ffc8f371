"""Every error as an RFC 9457 problem document, and the one table from an error's class to its HTTP status.

A problem says what is wrong (`detail`), what to do (`hint`), and in `errors` each wrong field: a JSON pointer into the
body, or `query:NAME`, `path:NAME`, `header:NAME`.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from dsd_core.errors import DataError, DsdError, SpecError, StorageError, WeakTeacherError, WeightsError
from jobs.store import (
    IdempotencyConflict,
    JobNotFound,
    NeedFailedError,
    NeedNotFound,
    NotPossible,
    WorkerNotFound,
)

log = logging.getLogger(__name__)

Json = dict[str, Any]
PROBLEM_TYPE = "application/problem+json"
DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)


class Unauthorized(DsdError):
    """This service wants its API key."""

    code: ClassVar[str] = "unauthorized"


class WrongFields(SpecError):
    """A body, mostly a job specification, is wrong in these fields, each a `field_problems` item."""

    def __init__(self, wrong: list[dict[str, str]], what: str = "job specification") -> None:
        super().__init__(f"The {what} is wrong in {len(wrong)} field{'s' if len(wrong) > 1 else ''}.")
        self.wrong = wrong


class BodyRefused(DsdError):
    """The request's body is not JSON that this service reads."""

    code: ClassVar[str] = "invalid_json"


class BodyTooLarge(DsdError):
    """The request's body is too large."""

    code: ClassVar[str] = "body_too_large"


class WrongMediaType(DsdError):
    """The request's body must be JSON."""

    code: ClassVar[str] = "wrong_media_type"


class WrongHost(DsdError):
    """The service does not answer under this name."""

    code: ClassVar[str] = "wrong_host"


class ModelNotFound(DsdError):
    """There is no such model, version or file."""

    code: ClassVar[str] = "model_not_found"


class FileGone(DsdError):
    """The file is no longer in the storage."""

    code: ClassVar[str] = "file_gone"


class RangeNotSatisfiable(DsdError):
    """The range lies outside of the file."""

    code: ClassVar[str] = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes; the range begins after them.")
        self.size = size


STATUS: dict[type[DsdError], HTTPStatus] = {
    SpecError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DataError: HTTPStatus.UNPROCESSABLE_ENTITY,
    WeightsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    WeakTeacherError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IdempotencyConflict: HTTPStatus.UNPROCESSABLE_ENTITY,
    NeedNotFound: HTTPStatus.UNPROCESSABLE_ENTITY,
    NeedFailedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    JobNotFound: HTTPStatus.NOT_FOUND,
    WorkerNotFound: HTTPStatus.NOT_FOUND,
    NotPossible: HTTPStatus.CONFLICT,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    BodyRefused: HTTPStatus.BAD_REQUEST,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    WrongMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    WrongHost: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    FileGone: HTTPStatus.GONE,
    RangeNotSatisfiable: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
    DsdError: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document."""
    handlers: dict[Any, Any] = {
        DsdError: _on_dsd_error,
        RequestValidationError: _on_wrong_parameters,
        HTTPException: _on_http_exception,
        Exception: _on_surprise,
    }
    handlers |= dict.fromkeys(DATABASE_AWAY, _on_database_away)
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def problem(
    status: HTTPStatus, code: str, detail: str, *, instance: str, headers: Json | None = None, **more: Any
) -> JSONResponse:
    """A problem document; `more` are further members, such as `hint` and `errors`."""
    body = {
        "type": f"urn:dsd:problem:{code}",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "instance": instance,
        "code": code,
        "hint": None,
        "errors": [],
    }
    always = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return JSONResponse(body | more, int(status), headers=always | (headers or {}), media_type=PROBLEM_TYPE)


def problem_of(error: DsdError, instance: str) -> JSONResponse:
    """The problem document of an error that a user can read."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    more: Json = {"hint": error.hint, "errors": _errors_of(error)}
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, NotPossible):
        more["job_status"] = error.status
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "5"
    return problem(status, error.code, error.message, instance=instance, headers=headers, **more)


def _errors_of(error: DsdError) -> list[Json]:
    if isinstance(error, WrongFields):
        return [{"field": item["field"], "message": item["message"], "hint": None} for item in error.wrong]
    if error.field is None:
        return []
    return [{"field": error.field, "message": error.message, "hint": error.hint}]


async def _on_dsd_error(request: Request, error: DsdError) -> JSONResponse:
    return problem_of(error, request.url.path)


async def _on_wrong_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
    errors = [
        {"field": _place(item["loc"]), "message": item["msg"].removeprefix("Value error, "), "hint": None}
        for item in error.errors()
    ]
    detail = "The request is wrong: " + "; ".join(f"{e['field']}: {e['message']}" for e in errors[:10])
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return problem(status, "invalid_request", detail, instance=request.url.path, errors=errors)


def _place(loc: tuple[Any, ...]) -> str:
    return ":".join(map(str, loc[:2])) if loc else "/"


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """What the framework refuses: an unknown path, a method that a path does not have."""
    status = HTTPStatus(error.status_code)
    hints = {
        HTTPStatus.NOT_FOUND: "The paths are listed at /docs.",
        HTTPStatus.METHOD_NOT_ALLOWED: "The methods of each path are listed at /docs.",
    }
    detail = f"{request.method} {request.url.path}: {error.detail}."
    headers = dict(error.headers or {})
    code = status.name.lower()
    return problem(status, code, detail, instance=request.url.path, headers=headers, hint=hints.get(status))


async def _on_database_away(request: Request, error: DBAPIError | PoolTimeoutError) -> JSONResponse:
    log.warning("api.database_away path=%s error=%s", request.url.path, type(error).__name__)
    return database_away(request.url.path)


def database_away(instance: str) -> JSONResponse:
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "database_away",
        "The database does not answer.",
        instance=instance,
        headers={"Retry-After": "5"},
        hint="Try again in a few seconds. Nothing was changed unless the connection broke while it was written: "
        "repeat a submission with the same Idempotency-Key.",
    )


async def _on_surprise(request: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log, where the server writes it; the answer says nothing of it."""
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal",
        "The service made a mistake; it has been written to its log.",
        instance=request.url.path,
    )
