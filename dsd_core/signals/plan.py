"""Which of the teacher's signals a job keeps, and under what key. Torch-free."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from dsd_core.distill.presets import Loss
from dsd_core.distill.signals import Correlation, Energy, Labelling, Logits, Signal
from dsd_core.errors import SpecError
from dsd_core.legs import seeds_of
from dsd_core.spec import JobSpec

FORMAT = 4
"""Counts up whenever the same teacher and image would give other bytes."""


@dataclass(frozen=True)
class Plan:
    """What is kept of each image, `image`, or of each of its views, `view`."""

    kind: Literal["image", "view"]
    signals: tuple[Signal, ...]
    """What the losses ask for."""
    scales: tuple[float, ...]
    """At which the teacher sees an image, of kind image."""
    views: int
    """Of each image, of kind view."""
    view_seed: int
    top_k: int | None

    @property
    def kept(self) -> tuple[Signal, ...]:
        """What a record holds. Views keep the signals themselves; images the maps they are derived from, which alone
        can be sampled."""
        if self.kind == "view":
            return self.signals
        return tuple(dict.fromkeys(signal.base for signal in self.signals))

    @property
    def looks(self) -> int:
        """Passes of the teacher an image, and records."""
        return len(self.scales) if self.kind == "image" else self.views


def plan_of(spec: JobSpec) -> Plan | None:
    """None where the teacher stays in the loop, or there is none. Raises SpecError where a loss cannot do with what the
    spec asks to keep."""
    taught = [loss for loss in spec.losses if loss.uses_teacher]
    if spec.teacher is None or spec.signals == "off" or not taught:
        return None
    whole = [loss.term for loss in taught if loss.signals() is None]
    if spec.signals == "auto":
        if whole or spec.train.epochs <= len(spec.scales):  # whatever the seeds: each trains as it would alone
            return None
    elif whole:
        raise whole_features_needed(spec.signals, whole)
    return Plan(
        "view" if spec.signals == "view" else "image",
        _asked(taught),
        spec.scales,
        spec.views,
        spec.view_seed,
        spec.top_k,
    )


def whole_features_needed(kind: str, terms: list[str]) -> SpecError:
    return SpecError(
        f"{', '.join(terms)} needs whole features of the teacher, which are too large to keep.",
        field="/signals",
        hint=f"Leave `signals: {kind}` out, or distil with psd, csd, at, or losses of logits such as kd, cwd and dist.",
    )


def visits(spec: JobSpec) -> int:
    """How often a job shows each image to a student with a teacher."""
    return spec.train.epochs * len(seeds_of(spec))


def _asked(losses: list[Loss]) -> tuple[Signal, ...]:
    return tuple(dict.fromkeys(signal for loss in losses for signal in loss.signals() or ()))


def key_of(identity: dict[str, Any]) -> str:
    """sha256 (hex) of all that a record's bytes depend on."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(
    plan: Plan, spec: JobSpec, *, teacher: dict[str, Any], dataset_fingerprint: str, numerics: str
) -> dict[str, Any]:
    """What the records depend on. `teacher` tells it from every other with its layers; `numerics`: the device and the
    precision it computes in."""
    on_views = {
        "augment": spec.train.augment.model_dump(mode="json"),
        "views": plan.views,
        "view_seed": plan.view_seed,
    }
    return {
        "teacher": teacher,
        "dataset": {"fingerprint": dataset_fingerprint, "size": spec.dataset.size},
        "numerics": numerics,
        "kind": plan.kind,
        "kept": [repr(signal) for signal in plan.kept],
        "top_k": plan.top_k,
        **({"scales": plan.scales} if plan.kind == "image" else on_views),
    }


def expected(plan: Plan, spec: JobSpec, images: int, missing: int) -> dict[str, float]:
    """What a job with `missing` records will ask of the teacher: passes in all, those it would take in the loop, and
    the share of views whose signals lie in the store."""
    epoch = max(images // spec.train.batch, 1) * spec.train.batch
    shown = visits(spec) * epoch
    first_sights = min(missing / plan.looks if plan.kind == "image" else missing, shown)
    return {"teacher_passes": missing, "passes_in_loop": shown, "hit_rate": 1 - first_sights / shown}


LAYERS, HEAD_STRIDE = 4, 4
"""What a network is taken to have until it is built: taps, and the stride of its logits."""


def rough_bytes(plan: Plan, spec: JobSpec, images: int, size: tuple[int, int], classes: int) -> int:
    """About how much the records take, of images of `size`, for networks that have not been built."""
    seen = [(round(size[0] * scale), round(size[1] * scale)) for scale in plan.scales]
    looks = seen if plan.kind == "image" else [spec.train.augment.crop or size] * plan.views
    layers = len(spec.student.taps) or LAYERS
    return images * sum(_rough(signal, look, classes, layers, plan.top_k) for look in looks for signal in plan.kept)


def _rough(signal: Signal, size: tuple[int, int], classes: int, layers: int, top_k: int | None) -> int:
    pixels = size[0] * size[1]
    match signal:
        case Energy(stride=stride):
            return 2 * layers * pixels // (stride or 2 * HEAD_STRIDE) ** 2
        case Logits(at=at, stride=stride):
            a_position = 2 * classes if top_k is None else 3 * top_k + 2
            return a_position * pixels // (stride or (1 if at == "image" else HEAD_STRIDE)) ** 2
        case Correlation():
            return 2 * classes**2
        case Labelling():
            return pixels
    return classes
