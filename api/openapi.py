"""The OpenAPI document: FastAPI's, with the schemas of a job, its result and its problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from api.errors import PROBLEM_TYPE
from api.schemas import JobWishes, Problem
from dsd_core.events import Result
from dsd_core.spec import JobSpec

REF = "#/components/schemas/{model}"
PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457).",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}},
    }
}


def document_errors(app: FastAPI) -> None:
    """Make `app.openapi()` carry the schemas that endpoints only refer to."""
    of_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = of_fastapi()
            parts = [(part, "validation") for part in (JobSpec, JobWishes, Result, Problem)]
            _, schemas = models_json_schema(parts, ref_template=REF)  # type: ignore[arg-type]
            document["components"].setdefault("schemas", {}).update(schemas["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
