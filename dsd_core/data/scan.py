"""Reading a whole dataset once before anything is trained on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dsd_core.cores import usable_cores
from dsd_core.data.dataset import IGNORE, Dataset, Size
from dsd_core.errors import LISTED_NAMES, DataError, listed

SMALL_EDGE = 16
MOST_THREADS = 8
AHEAD = 512
"""Items in flight at a time, which bounds the memory of a scan whatever the number of images."""


@dataclass
class Scan:
    """What a scan saw; pixels of `class_pixels` do not count ignored ones."""

    class_pixels: tuple[int, ...]
    class_images: tuple[int, ...]
    """Images that show the class at all."""
    ignored_pixels: int
    sizes: Counter[Size]
    """Images of each (height, width)."""
    blank: list[str]
    """Names of labelled images with no label but 255."""
    bad: list[DataError] = field(repr=False)
    """Why each item that cannot be used cannot."""
    seconds: float
    complete: bool
    """False where the budget ended before the dataset did."""

    @property
    def images(self) -> int:
        """Those that can be used."""
        return sum(self.sizes.values())

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Share of the labelled pixels, per class."""
        total = max(sum(self.class_pixels), 1)
        return tuple(pixels / total for pixels in self.class_pixels)


def scan(
    dataset: Dataset,
    *,
    budget_s: float | None = None,
    field: str = "/dataset",
    tell: Callable[[int], None] = lambda done: None,
) -> Scan:
    """Read every item fully, in threads, for at most `budget_s` seconds; `tell` hears how many items are done.

    Raises one DataError for all the files that cannot be used, listing up to 20 of them.
    """
    scanned = survey(dataset, budget_s=budget_s, tell=tell)
    if scanned.bad:
        raise _all_in_one(scanned.bad, dataset, field)
    return scanned


def survey(
    dataset: Dataset,
    *,
    budget_s: float | None = None,
    hashed: bool = False,
    tell: Callable[[int], None] = lambda done: None,
) -> Scan:
    """A scan that collects what cannot be used instead of raising; `hashed` also computes the items' digests, and
    `tell` hears how many items are done."""
    start = time.perf_counter()
    deadline = start + budget_s if budget_s is not None else float("inf")
    pixels, shown = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    sizes: Counter[Size] = Counter()
    blank, bad, looked = [], [], 0
    for index, look in enumerate(_looks(dataset, deadline, hashed)):
        if isinstance(look, DataError):
            bad.append(look)
        elif look is not None:
            counts, size = look
            pixels += counts
            shown += counts > 0
            sizes[size] += 1
            if dataset.labelled and not counts[:IGNORE].any():
                blank.append(dataset.names[index])
        looked += look is not None
        tell(index + 1)
    classes = len(dataset.classes)
    return Scan(
        class_pixels=tuple(pixels[:classes].tolist()),
        class_images=tuple(shown[:classes].tolist()),
        ignored_pixels=int(pixels[IGNORE]),
        sizes=sizes,
        blank=blank,
        bad=bad,
        seconds=time.perf_counter() - start,
        complete=looked == len(dataset),
    )


def remarks(dataset: Dataset, scanned: Scan) -> list[str]:
    """What is odd about data that can be used, a sentence each."""
    split, found = dataset.split, []
    tiny = sum(count for size, count in scanned.sizes.items() if min(size) < SMALL_EDGE)
    absent = [name for name, images in zip(dataset.classes, scanned.class_images, strict=True) if not images]
    if not dataset.labelled:
        found.append(f"{split} has no labels{': no mIoU will be known' if split == 'val' else ''}.")
    elif absent and split == "train" and scanned.complete:
        found.append(f"train shows no pixel of {listed(absent)}.")
    if scanned.blank:
        found.append(f"{len(scanned.blank)} masks of {split} ignore every pixel: {listed(scanned.blank)}.")
    if tiny:
        found.append(f"{tiny} images of {split} have an edge under {SMALL_EDGE} pixels.")
    return found


def _looks(dataset: Dataset, deadline: float, hashed: bool) -> Iterator[tuple[np.ndarray, Size] | DataError | None]:
    """Pixels of each value and the size of every item, in order; None for those after the deadline."""

    def look(index: int) -> tuple[np.ndarray, Size] | DataError | None:
        if time.perf_counter() > deadline:
            return None
        try:
            label_HW = dataset.read(index)[1]
            if hashed:
                dataset.digests(index)
        except DataError as error:
            return error
        height, width = label_HW.shape
        # Pillow counts bytes as they are; numpy's bincount would first widen each to eight
        return np.array(Image.fromarray(label_HW).histogram(), dtype=np.int64), (height, width)

    with ThreadPoolExecutor(min(usable_cores(), MOST_THREADS)) as pool:
        for start in range(0, len(dataset), AHEAD):
            yield from pool.map(look, range(start, min(start + AHEAD, len(dataset))))


def _all_in_one(bad: list[DataError], dataset: Dataset, field: str) -> DataError:
    lines = [f"- {error.message}" for error in bad[:LISTED_NAMES]]
    if len(bad) > LISTED_NAMES:
        lines.append(f"- and {len(bad) - LISTED_NAMES} more")
    hints = dict.fromkeys(error.hint for error in bad if error.hint)
    return DataError(
        f"{len(bad)} of {len(dataset)} items of the split {dataset.split!r} cannot be used:\n"
        + "\n".join(lines)
        + "\n",
        field=field,
        hint=" ".join(hints),
    )
