"""What a job needs of a worker, and what a worker has: who may run what, and on which queue it is announced. Pure.

A demand has one text, so that the queued jobs that need the same are found together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Device = Literal["cpu", "cuda"]
QUEUE = "jobs"  # jobs for any device; `jobs.cpu` and `jobs.cuda` hold those for one


@dataclass(frozen=True)
class Offer:
    """What one worker has. It runs one job at a time and gives it all of this."""

    worker: str  # its name
    host: str
    device: Device
    devices: tuple[str, ...] = ()  # the GPUs as CUDA_VISIBLE_DEVICES names them; empty on a CPU
    memory_gib: float = 0.0  # RAM on a CPU, else the memory of its smallest GPU
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demand:
    """What one job needs, from `resources` of its spec."""

    device: Literal["any", "cpu", "cuda"] = "any"
    processes: int = 1
    memory_gib: float | None = None  # RAM on a CPU, else memory of each GPU
    labels: tuple[tuple[str, str], ...] = ()  # sorted; the worker must have each of them

    def __str__(self) -> str:
        """The canonical text: demands are equal where their texts are."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def demand_of(spec: Mapping[str, Any]) -> Demand:
    """The demand of a job, from its spec as JSON. Specs from before there were resources demand nothing."""
    resources = spec.get("resources") or {}
    memory_gib = resources.get("memory_gib")
    return Demand(
        device=resources.get("device", "any"),
        processes=resources.get("processes", 1),
        memory_gib=None if memory_gib is None else float(memory_gib),
        labels=tuple(sorted(resources.get("labels", {}).items())),
    )


def parse_demand(text: str) -> Demand:
    """The demand with this canonical text."""
    fields = json.loads(text)
    return Demand(**{**fields, "labels": tuple((key, value) for key, value in fields["labels"])})


def fits(demand: Demand, offer: Offer) -> bool:
    """Whether a worker may run a job. On a CPU the processes of a job share the cores, however many they are."""
    return (
        demand.device in ("any", offer.device)
        and (offer.device == "cpu" or demand.processes <= len(offer.devices))
        and (demand.memory_gib is None or demand.memory_gib <= offer.memory_gib)
        and all(offer.labels.get(key) == value for key, value in demand.labels)
    )


def queue_of(demand: Demand) -> str:
    """The Celery queue a job is announced on."""
    return QUEUE if demand.device == "any" else f"{QUEUE}.{demand.device}"


def queues_of(offer: Offer) -> tuple[str, ...]:
    """The Celery queues a worker listens to."""
    return QUEUE, f"{QUEUE}.{offer.device}"
