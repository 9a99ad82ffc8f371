"""Scanning a dataset before it is used, and keeping it decoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_core.data import open_dataset
from dsd_core.data.cache import cached
from dsd_core.data.dataset import Dataset, Item
from dsd_core.data.scan import scan
from dsd_core.errors import DataError
from tests.builders import tiny_camvid


class Counted(Dataset):
    """A dataset of one grey that counts how often each item is read."""

    classes, palette = ("a", "b"), [(0, 0, 0), (9, 9, 9)]

    def __init__(self, count: int) -> None:
        super().__init__("train", [str(index) for index in range(count)], (4, 5))
        self.reads = [0] * count

    def read(self, index: int) -> Item:
        self.reads[index] += 1
        return np.full((4, 5, 3), index, np.uint8), np.full((4, 5), index % 2, np.uint8)

    def fingerprint(self) -> str:
        return "counted"


def test_scan_counts_every_pixel_of_every_class(tmp_path: Path) -> None:
    dataset = open_dataset("camvid", tiny_camvid(tmp_path), "train")
    found = scan(dataset)
    labels = np.stack([label for _, label in dataset])
    assert found.complete and found.images == 6 and found.seconds > 0
    assert found.class_pixels == tuple(int((labels == class_id).sum()) for class_id in range(11))
    assert found.ignored_pixels == int((labels == 255).sum())
    assert sum(found.class_shares) == pytest.approx(1)


def test_scan_names_all_bad_files_of_every_kind_at_once(tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path)
    (root / "train" / "train_000.png").write_bytes(b"")
    Image.fromarray(np.full((48, 64), 99, np.uint8)).save(root / "trainannot" / "train_001.png")
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(root / "trainannot" / "train_003.png")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "trainannot" / "train_005.png")
    with pytest.raises(DataError) as caught:
        scan(open_dataset("camvid", root, "train", (48, 64)), field="/dataset/root")
    message = caught.value.message
    assert "4 of 6" in message and caught.value.field == "/dataset/root"
    named = [index for index in range(6) if f"train_{index:03d}.png" in message]
    assert named == [0, 1, 3, 5]


def test_scan_lists_twenty_bad_files_and_counts_the_rest(tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path, train=23, size=(8, 8))
    for path in (root / "train").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        scan(open_dataset("camvid", root, "train", (8, 8)))
    assert caught.value.message.count("cannot be decoded") == 20
    assert "and 3 more" in caught.value.message


def test_scan_ends_with_its_budget_and_says_so() -> None:
    found = scan(Counted(50), budget_s=0.0)
    assert not found.complete and found.images == 0 and found.class_shares == (0.0, 0.0)


def test_cached_items_are_read_once() -> None:
    dataset = Counted(3)
    kept = cached(dataset)
    scan(kept)
    assert [int(image[0, 0, 0]) for image, _ in kept] == [0, 1, 2]
    assert dataset.reads == [1, 1, 1]
    assert (kept.size, kept.classes, kept.names, kept.fingerprint()) == ((4, 5), ("a", "b"), ["0", "1", "2"], "counted")


def test_cache_stays_within_its_bytes() -> None:
    dataset = Counted(3)
    kept = cached(dataset, limit_bytes=2 * 4 * 5 * 4)
    for _ in range(2):
        list(kept)
    assert dataset.reads == [1, 1, 2]


def test_opening_and_scanning_need_no_torch() -> None:
    code = "import sys, dsd_core.data, dsd_core.data.scan, dsd_core.data.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
