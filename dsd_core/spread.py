"""Figures of several seeds as one: mean and sample standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from dsd_core.events import Score, SeedResult


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean, and the standard deviation with n - 1 in its denominator, which needs two values.

    None where a value is missing: a mean of the rest would be another quantity.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return fmean(known), stdev(known) if len(known) > 1 else None


def gain_of(student: Score, baseline: Score | None = None) -> float | None:
    """The student's mIoU less the baseline's; None where either is missing."""
    if baseline is None or baseline.miou is None or student.miou is None:
        return None
    return student.miou - baseline.miou


def over_seeds(seeds: Sequence[SeedResult]) -> dict[str, float | None]:
    """Mean and spread of student mIoU, baseline mIoU and gain, as `Result` names them."""
    columns = {
        "miou": [result.student.miou for result in seeds],
        "baseline": [result.baseline.miou if result.baseline else None for result in seeds],
        "gain": [result.gain for result in seeds],
    }
    figures = {name: mean_and_spread(values) for name, values in columns.items()}
    return {
        f"{name}_{kind}": value
        for name, pair in figures.items()
        for kind, value in zip(("mean", "spread"), pair, strict=True)
    }
