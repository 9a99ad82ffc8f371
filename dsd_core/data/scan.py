"""Reading a whole dataset once before anything is trained on it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dsd_core.data.dataset import Dataset
from dsd_core.errors import DataError

LISTED = 20


@dataclass(frozen=True)
class Scan:
    """What a scan saw; `class_pixels` does not count ignored pixels."""

    images: int
    class_pixels: tuple[int, ...]
    ignored_pixels: int
    seconds: float
    complete: bool
    """False where the budget ended before the dataset did."""

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Share of the labelled pixels, per class."""
        total = max(sum(self.class_pixels), 1)
        return tuple(pixels / total for pixels in self.class_pixels)


def scan(dataset: Dataset, *, budget_s: float | None = None, field: str = "/dataset") -> Scan:
    """Read every item fully, in threads, for at most `budget_s` seconds.

    Raises one DataError for all the files that cannot be used, listing up to 20 of them.
    """
    start = time.perf_counter()
    deadline = start + budget_s if budget_s is not None else float("inf")

    def look(index: int) -> np.ndarray | DataError | None:
        if time.perf_counter() > deadline:
            return None
        try:
            return np.bincount(dataset[index][1].ravel(), minlength=256)
        except DataError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(look, range(len(dataset))))
    bad = [result for result in looks if isinstance(result, DataError)]
    if bad:
        raise _all_in_one(bad, dataset, field)
    seen = [result for result in looks if isinstance(result, np.ndarray)]
    counts = np.zeros(256, dtype=np.int64)
    for count in seen:
        counts += count
    classes = len(dataset.classes)
    return Scan(
        images=len(seen),
        class_pixels=tuple(int(count) for count in counts[:classes]),
        ignored_pixels=int(counts[255]),
        seconds=time.perf_counter() - start,
        complete=len(seen) == len(dataset),
    )


def _all_in_one(bad: list[DataError], dataset: Dataset, field: str) -> DataError:
    lines = [f"- {error.message}" for error in bad[:LISTED]]
    if len(bad) > LISTED:
        lines.append(f"- and {len(bad) - LISTED} more")
    hints = dict.fromkeys(error.hint for error in bad if error.hint)
    return DataError(
        f"{len(bad)} of {len(dataset)} items of the split {dataset.split!r} cannot be used:\n"
        + "\n".join(lines)
        + "\n",
        field=field,
        hint=" ".join(hints),
    )
