"""The generated dataset: the same everywhere, uneven as real streets are, and no easier than it should be."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from dsd_core.data import open_dataset
from dsd_core.data.scan import scan
from dsd_core.errors import SpecError

DIGEST = """
import hashlib
from dsd_core.data import open_dataset
image, label = open_dataset("streets", None, "val")[7]
print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())
"""


def test_streets_has_240_training_and_60_validation_scenes() -> None:
    train, val = open_dataset("streets", None, "train"), open_dataset("streets", None, "val")
    assert (len(train), len(val)) == (240, 60)
    assert len(train.classes) == len(train.palette) == 11
    image, label = train[0]
    assert (image.dtype, image.shape) == (np.uint8, (*train.size, 3)) == (np.uint8, (96, 160, 3))
    assert (label.dtype, label.shape) == (np.int64, (96, 160))


def test_scene_is_the_same_in_another_process() -> None:
    image, label = open_dataset("streets", None, "val")[7]
    here = hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_scenes_differ_between_indices_and_splits() -> None:
    train, val = open_dataset("streets", None, "train"), open_dataset("streets", None, "val")
    images = [train[0][0], train[1][0], val[0][0], val[1][0]]
    assert len({image.tobytes() for image in images}) == 4


def test_shares_are_as_uneven_as_in_a_street() -> None:
    dataset = open_dataset("streets", None, "val")
    found = scan(dataset)
    share = dict(zip(dataset.classes, found.class_shares, strict=True))
    assert share["road"] + share["building"] + share["sky"] > 0.6
    for common in ("sky", "building", "road", "pavement", "tree"):
        assert share[common] > 0.03
    for rare in ("sign", "person", "bicycle"):
        assert 0.0005 < share[rare] < 0.015
    for middling in ("pole", "fence", "car"):
        assert 0.005 < share[middling] < 0.1
    assert max(share.values()) / min(share.values()) > 50


def test_some_pixels_at_borders_are_void() -> None:
    found = scan(open_dataset("streets", None, "val"))
    assert 0.005 < found.ignored_pixels / (found.ignored_pixels + sum(found.class_pixels)) < 0.05


def test_colour_alone_does_not_tell_the_class() -> None:
    """The best guess by colour (16 levels a channel) learnt from 60 scenes is poor on others: context is needed."""
    train, val = open_dataset("streets", None, "train"), open_dataset("streets", None, "val")
    votes = np.zeros((16**3, 11), dtype=np.int64)
    for index in range(60):
        image, label = train[index]
        np.add.at(votes, (_bins(image)[label < 11], label[label < 11]), 1)
    guess, hits, union = votes.argmax(axis=1), np.zeros(11), np.zeros(11)
    for index in range(20):
        image, label = val[index]
        predicted = np.where(label < 11, guess[_bins(image)], 255)
        for class_id in range(11):
            hits[class_id] += ((predicted == class_id) & (label == class_id)).sum()
            union[class_id] += ((predicted == class_id) | (label == class_id)).sum()
    assert (hits / union).mean() < 0.35


def test_fingerprint_tells_splits_apart_and_stays() -> None:
    prints = [open_dataset("streets", None, split).fingerprint() for split in ("train", "train", "val")]
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 64


def test_size_resizes_scenes() -> None:
    image, label = open_dataset("streets", None, "train", (48, 80))[3]
    assert image.shape == (48, 80, 3) and label.shape == (48, 80)


def test_root_and_unknown_split_are_refused(tmp_path: object) -> None:
    with pytest.raises(SpecError, match="takes no root"):
        open_dataset("streets", str(tmp_path), "train")
    with pytest.raises(SpecError, match="train"):
        open_dataset("streets", None, "training")


def _bins(image_HW3: np.ndarray) -> np.ndarray:
    red, green, blue = (image_HW3[:, :, channel].astype(np.int64) // 16 for channel in range(3))
    return red * 256 + green * 16 + blue
