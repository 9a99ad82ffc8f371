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
from dsd_core.data.report import Report, check_data
from dsd_core.data.scan import scan, survey
from dsd_core.errors import DataError, SpecError
from tests.builders import tiny_camvid
from tests.core import layouts


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
    assert found.class_images == tuple(int((labels == k).any(axis=(1, 2)).sum()) for k in range(11))
    assert found.sizes == {(48, 64): 6} and not found.blank and not found.bad


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


def test_survey_holds_all_bad_files_and_counts_the_good_ones(tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path, train=25, size=(8, 8))
    for path in sorted((root / "train").iterdir())[2:]:
        path.write_bytes(b"not an image")
    told: list[int] = []
    found = survey(open_dataset("camvid", root, "train"), tell=told.append)
    assert len(found.bad) == 23 and found.images == 2 and found.complete
    assert told == list(range(1, 26))


def test_scan_ends_with_its_budget_and_says_so() -> None:
    found = scan(Counted(50), budget_s=0.0)
    assert not found.complete and found.images == 0 and found.class_shares == (0.0, 0.0)


def kinds(report: Report) -> str:
    return "\n".join(report.warnings)


def test_a_clean_dataset_is_reported_with_its_make_up(tmp_path: Path) -> None:
    report = check_data("folder", str(layouts.folder(tmp_path)))
    assert report.clean and not report.warnings and not report.duplicates
    said = report.as_dict()
    assert said["classes"] == ["road", "car", "sky"] and set(said["splits"]) == {"train", "val"}
    train = said["splits"]["train"]
    assert train["images"] == 3 and train["class_images"] == {"road": 3, "car": 3, "sky": 3}
    assert sum(train["class_pixels"].values()) + train["ignored_pixels"] == 3 * 18 * 24
    assert train["sizes"] == {"distinct": 1, "by_area": dict.fromkeys(("smallest", "median", "largest"), (18, 24))}
    assert train["fingerprint"] == open_dataset("folder", tmp_path, "train").fingerprint()
    assert report.as_text().endswith("folder can be used.")


def test_sizes_are_reported_from_the_smallest_to_the_largest(tmp_path: Path) -> None:
    sizes = check_data("voc2012", str(layouts.voc(tmp_path))).as_dict()["splits"]["val"]["sizes"]
    assert sizes == {"distinct": 2, "by_area": {"smallest": (18, 24), "median": (18, 25), "largest": (18, 25)}}
    resized = check_data("voc2012", str(tmp_path), (20, 30)).as_dict()["splits"]["val"]["sizes"]
    assert resized["distinct"] == 1 and resized["by_area"]["median"] == (20, 30)


def test_equal_images_in_two_splits_are_named(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path)
    content = (root / "images" / "train" / "b.png").read_bytes()
    (root / "images" / "val" / "d.png").write_bytes(content)
    report = check_data("folder", str(root))
    assert report.clean and report.duplicates == [("train/b.png", "val/d.png")]
    assert "train/b.png = val/d.png" in kinds(report)


def test_odd_but_usable_data_is_warned_of(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path, "[road, car, sky, never]")
    layouts.save_ids(root / "masks" / "train" / "a.png", [255])
    layouts.save_image(root / "images" / "train" / "b.png", (1, 1))
    layouts.save_ids(root / "masks" / "train" / "b.png", [0], (1, 1))
    (root / "masks" / "val" / "d.png").unlink()
    (root / "masks" / "val").rmdir()
    report = check_data("folder", str(root))
    assert report.clean and len(report.warnings) == 4
    for said in (
        "no pixel of never",
        "1 masks of train ignore every pixel: a.png",
        "1 images of train",
        "val has no labels",
    ):
        assert said in kinds(report)


def test_every_bad_file_of_every_split_is_a_problem(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path, train=[f"{number:02d}" for number in range(30)], val=["v"])
    for number in range(25):
        (root / "images" / "train" / f"{number:02d}.png").write_bytes(b"")
    (root / "masks" / "val" / "v.png").unlink()
    report = check_data("folder", str(root))
    assert not report.clean and [problem.split for problem in report.problems] == ["train"] * 25 + ["val"]
    assert report.problems[-1].files == ("v.png",) and "train" not in report.fingerprints
    assert "24.png" in report.as_text() and report.as_text().endswith("folder has 26 problem(s).")


def test_all_names_of_missing_masks_are_in_the_report(tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path, train=30, size=(8, 8))
    for path in (root / "trainannot").iterdir():
        path.unlink()
    (problem,) = check_data("camvid", str(root)).problems
    assert len(problem.files) == 30 and "and 10 more" in problem.message


def test_a_missing_root_is_one_problem_and_an_unknown_dataset_an_error(tmp_path: Path) -> None:
    assert len(check_data("camvid", str(tmp_path / "nowhere")).problems) == 1
    with pytest.raises(SpecError, match="no dataset named 'camvit'"):
        check_data("camvit", None)


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
