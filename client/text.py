"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """`0.4 s`, `45 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes: `812 B`, `1.4 MB`."""
    return f"{count:.0f} B" if count < 1000 else f"{amount(count)}B"


def amount(count: float) -> str:
    """`940`, `1.4 M`, `12 G`: decimal prefixes, two or three digits."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 999.5 or prefix == "T":
            digits = 0 if count >= 100 or not prefix else 1 if count >= 10 else 2
            return f"{count:.{digits}f} {prefix}".rstrip() if not prefix else f"{count:.{digits}f} {prefix}"
        count /= 1000
    raise AssertionError


def fraction(value: float | None) -> str:
    """Four digits of a fraction; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def with_spread(mean: float | None, spread: float | None) -> str:
    """`0.5500 ± 0.0120`; the mean alone where there is no spread."""
    return fraction(mean) if spread is None else f"{fraction(mean)} ± {fraction(spread)}"


def signed_with_spread(mean: float, spread: float | None) -> str:
    """`+0.0300 ± 0.0050`."""
    return signed(mean) if spread is None else f"{signed(mean)} ± {fraction(spread)}"


def signed(value: float) -> str:
    return f"{value:+.4f}"


def number(value: float | None) -> str:
    """A loss in four digits, however small; `nan` where it is not a number."""
    if value is None:
        return "nan"
    return f"{value:.2e}" if value != 0 and abs(value) < 0.001 else f"{value:.4g}"


def ago(at: str | None) -> str:
    """The age of an RFC 3339 time: `3 min 20 s`."""
    return duration((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()) if at else "-"


def ahead(at: str) -> str:
    """How far ahead an RFC 3339 time is: `in 3 min 20 s`; `now` where it has passed."""
    seconds = (datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "now"
