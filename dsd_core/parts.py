"""What every part of a job specification is made of: the frozen, closed model, and the types of its fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator

Size = tuple[Annotated[int, Field(ge=16, le=8192)], Annotated[int, Field(ge=16, le=8192)]]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
LabelText = Annotated[str, Field(max_length=200)]
JOB_ID = r"[0-9a-z]{1,40}"


def _job_id(text: str) -> str:
    if not re.fullmatch(JOB_ID, text):
        raise ValueError(f"{text[:60]!r} is no job's id; `dsd jobs` lists those there are.")
    return text


def _web_address(text: str) -> str:
    """An absolute http or https URL without a password in it: whom the service may call is the operator's to say."""
    example = "give an address such as https://example.org/hooks/dsd"
    if not re.fullmatch(r"[\x21-\x7e]+", text) or "\\" in text:
        raise ValueError(f"{example}, in printable ASCII without spaces.")
    try:
        url = urlsplit(text)
        complete = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError as error:
        raise ValueError(f"{example}: {error}.") from error
    if not complete:
        raise ValueError(f"{example}, with http or https and a host.")
    if "@" in url.netloc:
        raise ValueError("leave user name and password out of the address: everybody who sees the job would read them.")
    return text


JobId = Annotated[str, AfterValidator(_job_id), Field(json_schema_extra={"pattern": f"^{JOB_ID}$"})]
WebAddress = Annotated[Text, AfterValidator(_web_address), Field(json_schema_extra={"format": "uri"})]


class Part(BaseModel):
    """Frozen, closed, and documented by its field descriptions, which `GET /catalog` and the API docs show."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def alternatives(message: str) -> WrapValidator:
    """For a field of several types: one message in place of a complaint for each of them."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(message) from None

    return WrapValidator(check)
