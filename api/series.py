"""The numbers in a job's events, by the names they have in MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Point = tuple[int, float]  # step over all phases, value


def numbers(type: str, event: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of each number in a progress or evaluated event; those that are not there are left out."""
    named = _progress(event) if type == "progress" else _evaluated(event)
    return ((_slug(name), float(value)) for name, value in named if value is not None)


def thinned(series: list[Point], limit: int) -> list[Point]:
    """At most `limit` points, evenly spaced; the first and the last are among them."""
    if len(series) <= limit:
        return series
    last = len(series) - 1
    return [series[index * last // (limit - 1)] for index in range(limit)]


def _progress(event: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    phase = event["phase"]
    for term, value in event["losses"].items():
        yield f"{phase}/loss/{term}", value
    for term, value in event["grad_norms"].items():
        yield f"{phase}/grad_norm/{term}", value
    for name in ("learning_rate", "images_per_s", "epoch"):
        yield f"{phase}/{name}", event[name]
    for name, value in event["system"].items():
        yield f"system/{name}", value


def _evaluated(event: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    subject = event["subject"]
    yield f"{subject}/miou", event["miou"]
    yield f"{subject}/pixel_accuracy", event["pixel_accuracy"]
    for name, value in event["per_class_iou"].items():
        yield f"{subject}/iou/{name}", value


def _slug(name: str) -> str:
    """MLflow takes letters, digits, `_ - . : /` and spaces in names; anything else becomes `_`."""
    return re.sub(r"[^\w\-./: ]+", "_", name, flags=re.ASCII).strip("/")[:250]
