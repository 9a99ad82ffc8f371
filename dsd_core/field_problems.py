"""What pydantic has against a value, as sentences that name the field and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from dsd_core.distill.losses import LOSSES
from dsd_core.errors import unknown
from dsd_core.parts import Part


def complaints(error: ValidationError) -> str:
    """What a pydantic error has against a value that stands alone, in one sentence a problem."""
    return " ".join(problem["message"] for problem in field_problems(error))


_QUOTED = re.compile(r"'([^']*)'")


def field_problems(error: ValidationError) -> list[dict[str, str]]:
    """Each wrong field of a pydantic error: its JSON pointer and what to do about it."""
    problems = []
    for item in error.errors(include_url=False):
        parts = [p for p in item["loc"] if p not in ("body", *LOSSES)]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"there is no such field. {_near_fields(parts)}".strip()
        elif item["type"] == "literal_error":
            message = _none_of(item["input"], _QUOTED.findall(item["ctx"]["expected"]))
        elif item["type"] == "union_tag_invalid":
            message, parts = str(unknown("loss", item["ctx"]["tag"], LOSSES)), [*parts, "loss"]
        elif item["type"] == "union_tag_not_found":
            message = f"say which `loss` it is: {', '.join(LOSSES)}."
        problems.append({"field": "".join(f"/{p}" for p in parts), "message": message, "type": item["type"]})
    return problems


def _near_fields(parts: list[Any]) -> str:
    known = {name for part in _parts_of_a_spec(Part) for name in part.model_fields}
    return _near(str(parts[-1]), known) if parts else ""


def _parts_of_a_spec(part: type[Part]) -> Iterator[type[Part]]:
    for kind in part.__subclasses__():
        yield kind
        yield from _parts_of_a_spec(kind)


def _none_of(value: Any, known: list[str]) -> str:
    return f"{str(value)[:100]!r} is none of {', '.join(known)}. {_near(str(value), known)}".strip()


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}?" if near else ""
