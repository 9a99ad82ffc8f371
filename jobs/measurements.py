"""The numbers of an event as named metrics and a spec as flat parameters, for MLflow and `GET /jobs/{id}/metrics`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dsd_core.events import leg_name

PARAM_CHARS = 500
NAME_CHARS = 250


class Measurement(NamedTuple):
    name: str
    value: float
    step: int  # over all phases of all seeds


def measurements(type: str, event: dict[str, Any]) -> list[Measurement]:
    """The metrics of a progress or evaluated event; none of others. Numbers that are not there are left out, such as
    those that events of older versions have not."""
    named = _NAMED.get(type)
    if named is None:
        return []
    return [
        Measurement(_slug(name), float(value), event["total_step"]) for name, value in named(event) if value is not None
    ]


def params_of(spec: dict[str, Any]) -> dict[str, str]:
    """A spec as flat names and texts: `train.augment.crop`, `losses.psd.weight`."""
    return {_slug(name): text[:PARAM_CHARS] for name, text in _flat(spec, "")}


Numbers = Iterator[tuple[str, float | None]]


def _progress(event: dict[str, Any]) -> Numbers:
    phase = leg_name(event["phase"], event.get("seed"))
    for term, value in event["losses"].items():
        yield f"{phase}/loss/{term}", value
    for term, value in event["grad_norms"].items():
        yield f"{phase}/grad_norm/{term}", value
    for name in ("learning_rate", "images_per_s", "epoch"):
        yield f"{phase}/{name}", event[name]
    for name, value in event.get("signals", {}).items():
        yield f"signals/{name}", value
    for name, value in event["system"].items():
        yield f"system/{name}", value


def _evaluated(event: dict[str, Any]) -> Numbers:
    subject = leg_name(event["subject"], event.get("seed"))
    for name in ("miou", "pixel_accuracy", "class_accuracy", "boundary_iou"):
        yield f"{subject}/{name}", event.get(name)
    for kind, figures in (("iou", "iou"), ("accuracy", "accuracy"), ("boundary", "boundary_iou")):
        for name, value in event.get(f"per_class_{figures}", {}).items():
            yield f"{subject}/{kind}/{name}", value


_NAMED = {"progress": _progress, "evaluated": _evaluated}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Mappings by their keys, the losses by their names, everything else as JSON; a plain text without its quotes."""
    prefix = f"{name}." if name else ""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, prefix + key)
    elif isinstance(value, list) and value and all(isinstance(part, dict) and "loss" in part for part in value):
        for part in value:
            yield from _flat(
                {key: v for key, v in part.items() if key != "loss"}, prefix + (part.get("name") or part["loss"])
            )
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    """MLflow takes letters, digits, `_ - . : /` and spaces in names; anything else becomes `_`."""
    return re.sub(r"[^\w\-./: ]+", "_", name, flags=re.ASCII).strip("/")[:NAME_CHARS]
