"""Events and a result as a job leaves them, for views and tables."""

from __future__ import annotations

from typing import Any

from dsd_core import events

COST = {"height": 240, "width": 320, "latency_ms": 12.5}
SCORE = {"pixel_accuracy": 0.9, "per_class_iou": {"road": 0.9}}
AT = "2026-01-02T03:04:05.678Z"


def result(**changes: Any) -> dict[str, Any]:
    """A distillation with a baseline and a gain."""
    whole = {
        "student": SCORE | {"miou": 0.55},
        "student_cost": COST | {"network": "espnet", "params": 364_000, "flops": 1_200_000_000},
        "teacher": SCORE | {"miou": 0.65},
        "teacher_cost": COST | {"network": "fpn:resnet18", "params": 13_000_000, "flops": 9_000_000_000},
        "baseline": SCORE | {"miou": 0.52},
        "gain": 0.03,
        "files": [
            {"path": "model.safetensors", "bytes": 1_480_000, "sha256": "0" * 64},
            {"path": "model.onnx", "bytes": 1_700_000, "sha256": "1" * 64},
        ],
        "classes": ["road"],
        "onnx_max_error": 1e-6,
        "dataset_fingerprint": "f" * 64,
        "spec_digest": "d" * 64,
        "code_version": "0.1.0",
        "train_seconds": 100.0,
    }
    return events.Result.model_validate(whole | changes).model_dump(mode="json")


def result_of_seeds() -> dict[str, Any]:
    """The same with the seeds 0 and 1."""
    of_seed = [(0, {"miou": 0.55}, {"miou": 0.52}, 0.03), (1, {"miou": 0.57}, {"miou": 0.53}, 0.04)]
    return result(
        seeds=[
            dict(seed=seed, student=SCORE | student, baseline=SCORE | baseline, gain=gain)
            for seed, student, baseline, gain in of_seed
        ],
        miou_mean=0.56,
        miou_spread=0.0141,
        baseline_mean=0.525,
        baseline_spread=0.0071,
        gain_mean=0.035,
        gain_spread=0.0072,
    )


def progress(phase: str, step: int, steps: int, total: int, **changes: Any) -> dict[str, Any]:
    return dict(
        type="progress", phase=phase, step=step, steps=steps, total_step=total, total_steps=2 * steps, epoch=1,
        losses={"loss": 1.5 / step, "ce": 1.2 / step, "psd": 0.0002 / step, "csd": None},
        learning_rate=9.8e-4, images_per_s=45.2, eta_s=83.0, at=AT, **changes,
    )  # fmt: skip


def run() -> list[dict[str, Any]]:
    """A whole run, each event checked against its model."""
    evaluated = dict(type="evaluated", pixel_accuracy=0.91, per_class_iou={"road": 0.9}, images=60, seconds=2.0, at=AT)
    story: list[dict[str, Any]] = [
        dict(
            type="started", spec_digest="d", code_version="0.1", device="cpu", torch="2.14.1", threads=2,
            total_steps=200, at=AT,
        ),
        evaluated | dict(subject="teacher", step=0, total_step=0, miou=0.65),
        *[progress("baseline", step, 100, step) for step in (20, 60, 100)],
        evaluated | dict(subject="baseline", step=100, total_step=100, miou=0.52),
        dict(type="note", level="warning", message="The class pole is rare.", at=AT),
        *[progress("student", step, 100, 100 + step) for step in (20, 60, 100)],
        dict(type="checkpoint", phase="student", step=100, total_step=200, path="c", bytes=1, sha256="0", at=AT),
        evaluated | dict(subject="student", step=100, total_step=200, miou=0.55),
        dict(type="finished", result=result(), at=AT),
    ]  # fmt: skip
    return [events.parse(event).model_dump(mode="json") for event in story]
