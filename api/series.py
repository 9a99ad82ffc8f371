"""Series of numbers for people to plot."""

from __future__ import annotations

Point = tuple[int, float]  # step over all phases and seeds, value


def thinned(series: list[Point], limit: int) -> list[Point]:
    """At most `limit` points, evenly spaced; the first and the last are among them."""
    if len(series) <= limit:
        return series
    last = len(series) - 1
    return [series[index * last // (limit - 1)] for index in range(limit)]
