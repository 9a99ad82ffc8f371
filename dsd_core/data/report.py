"""What `dsd data check` says of a dataset: every split read once, all that is wrong with it, and how it is made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsd_core.data import open_dataset
from dsd_core.data.dataset import SPLITS, Dataset, Size
from dsd_core.data.scan import Scan, remarks, survey
from dsd_core.errors import DataError, NoSplitError, SpecError, listed, shown

Tell = Callable[[str, int, int], None]
"""Hears the split, how many of its items are done, and how many there are."""


@dataclass
class Problem:
    """Something that keeps the dataset from being used."""

    split: str
    message: str
    hint: str | None
    files: tuple[str, ...]


@dataclass
class Report:
    """All that is known of a dataset after reading it; `clean` where nothing keeps it from being used."""

    dataset: str
    classes: tuple[str, ...] = ()
    scans: dict[str, Scan] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, ...]] = field(default_factory=list)
    """Images of equal bytes in more than one split, as SPLIT/NAME."""

    @property
    def clean(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "clean": self.clean,
            "classes": list(self.classes),
            "splits": {split: self._split(split, scan) for split, scan in self.scans.items()},
            "problems": [vars(problem) for problem in self.problems],
            "warnings": self.warnings,
            "duplicates": [list(group) for group in self.duplicates],
        }

    def _split(self, split: str, scan: Scan) -> dict[str, Any]:
        return {
            "images": scan.images,
            "sizes": size_figures(scan.sizes),
            "class_pixels": dict(zip(self.classes, scan.class_pixels, strict=True)),
            "class_images": dict(zip(self.classes, scan.class_images, strict=True)),
            "ignored_pixels": scan.ignored_pixels,
            "blank": scan.blank,
            "seconds": round(scan.seconds, 3),
            "fingerprint": self.fingerprints.get(split),
        }

    def as_text(self) -> str:
        """The report for people, a line a fact."""
        blocks = [self._split_lines(split, scan) for split, scan in self.scans.items()]
        blocks.append([f"warning: {warning}" for warning in self.warnings])
        blocks.append([line for problem in self.problems for line in _problem_lines(problem)])
        verdict = "can be used" if self.clean else f"has {len(self.problems)} problem(s)"
        return "\n".join([*("\n".join(block) + "\n" for block in blocks if block), f"{self.dataset} {verdict}."])

    def _split_lines(self, split: str, scan: Scan) -> list[str]:
        sizes = size_figures(scan.sizes)
        lines = [f"{split}: {scan.images} images, read in {scan.seconds:.1f} s"]
        if sizes:
            edges = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes["by_area"].items())
            lines.append(f"  sizes        {edges}; {sizes['distinct']} distinct")
        if sum(scan.class_pixels):
            ignored = scan.ignored_pixels / (scan.ignored_pixels + sum(scan.class_pixels))
            lines.append(f"  ignored      {ignored:.2%} of the pixels")
            shares = zip(self.classes, scan.class_shares, scan.class_images, strict=True)
            lines += [f"    {name:24} {share:8.3%} of pixels, {images:6} images" for name, share, images in shares]
        if split in self.fingerprints:
            lines.append(f"  fingerprint  {self.fingerprints[split]}")
        return lines


def check_data(
    dataset: str, root: str | None, size: Size | None = None, tell: Tell = lambda split, done, total: None
) -> Report:
    """Read every split of a dataset. Raises SpecError for a dataset that does not exist; all else is in the report."""
    report = Report(dataset)
    splits = {}
    for split in SPLITS:
        opened = _open(report, root, split, size)
        if opened is not None:
            splits[split] = opened
            _look(report, opened, tell)
    _find_duplicates(report, splits)
    return report


def size_figures(sizes: Counter[Size]) -> dict[str, Any]:
    """The smallest, median and largest (height, width) by area, and how many there are; empty for no image."""
    ordered = sorted(sizes.elements(), key=lambda size: (size[0] * size[1], size))
    if not ordered:
        return {}
    by_area = {"smallest": ordered[0], "median": ordered[len(ordered) // 2], "largest": ordered[-1]}
    return {"distinct": len(sizes), "by_area": by_area}


def _open(report: Report, root: str | None, split: str, size: Size | None) -> Dataset | None:
    """The split; None where it cannot be opened, which is a problem unless it is a test split that is not there."""
    optional = (NoSplitError, SpecError) if split == "test" else ()
    try:
        return open_dataset(report.dataset, root, split, size)
    except optional:
        return None
    except DataError as error:
        if error.message not in [problem.message for problem in report.problems]:  # a missing root fails every split
            report.problems.append(Problem(split, error.message, error.hint, error.files))
    return None


def _look(report: Report, dataset: Dataset, tell: Tell) -> None:
    split, total = dataset.split, len(dataset)
    scanned = survey(dataset, hashed=True, tell=lambda done: tell(split, done, total))
    report.classes = dataset.classes
    report.scans[split] = scanned
    report.problems += [Problem(split, error.message, error.hint, error.files) for error in scanned.bad]
    if not scanned.bad:
        report.fingerprints[split] = dataset.fingerprint()
    report.warnings += remarks(dataset, scanned)


def _find_duplicates(report: Report, splits: dict[str, Dataset]) -> None:
    places: dict[bytes, list[tuple[str, str]]] = {}
    for split, dataset in splits.items():
        for index, name in enumerate(dataset.names):
            for digest in _image_digests(dataset, index):
                places.setdefault(digest, []).append((split, name))
    shared = [group for group in places.values() if len({split for split, _ in group}) > 1]
    report.duplicates = [tuple(f"{split}/{name}" for split, name in group) for group in shared]
    if shared:
        pairs = [" = ".join(group) for group in report.duplicates]
        report.warnings.append(f"{len(shared)} images stand in more than one split: {listed(pairs)}.")


def _image_digests(dataset: Dataset, index: int) -> tuple[bytes, ...]:
    """The digest of the image; none for generated images and for files that cannot be read, which are problems
    already."""
    try:
        return dataset.digests(index)[:1]
    except DataError:
        return ()


def _problem_lines(problem: Problem) -> list[str]:
    hint = f" {problem.hint}" if problem.hint else ""
    return [f"error: {problem.split}: {problem.message}{hint}", *(f"  {shown(name)}" for name in problem.files)]
