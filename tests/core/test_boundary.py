"""Boundary IoU against a slow one that follows the paper class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_core.boundary import boundary_counts, boundary_distance
from dsd_core.evaluate import Confusion

CLASSES = 4


def slow_counts(predicted_HW, label_HW, classes):
    """Intersection and union of each class's band: every pixel asks every pixel around it."""
    height, width = label_HW.shape
    distance = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    void_HW = label_HW == 255
    counts = np.zeros((2, classes), dtype=np.int64)
    for k in range(classes):
        bands = [slow_band((ids_HW == k) & ~void_HW, void_HW, distance) for ids_HW in (label_HW, predicted_HW)]
        counts[0, k] = (bands[0] & bands[1]).sum()
        counts[1, k] = (bands[0] | bands[1]).sum()
    return counts


def slow_band(mask_HW, void_HW, distance):
    height, width = mask_HW.shape
    band_HW = np.zeros_like(mask_HW)
    for y, x in zip(*np.nonzero(mask_HW), strict=True):
        at_the_end = min(y, x, height - 1 - y, width - 1 - x) < distance
        around = (slice(max(y - distance, 0), y + distance + 1), slice(max(x - distance, 0), x + distance + 1))
        band_HW[y, x] = at_the_end or (~mask_HW & ~void_HW)[around].any()
    return band_HW


def blobs(seed, size=(60, 90), *, void=True):
    """Predictions and labels of large patches, a void one among the labels."""
    rng = np.random.default_rng(seed)
    ids = []
    for _ in range(2):
        ids_HW = np.zeros(size, dtype=np.int64)
        for _ in range(6):
            y, x = rng.integers(0, size[0] - 15), rng.integers(0, size[1] - 20)
            ids_HW[y : y + rng.integers(5, 30), x : x + rng.integers(5, 40)] = rng.integers(0, CLASSES)
        ids.append(ids_HW)
    if void:
        ids[1][10:35, 20:50] = 255
    return ids[0], ids[1]


def fast_counts(predicted_HW, label_HW):
    predicted, labels = (torch.from_numpy(ids_HW)[None] for ids_HW in (predicted_HW, label_HW))
    return boundary_counts(predicted, labels, CLASSES).numpy()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), void=st.booleans())
def test_counts_equal_the_slow_ones(seed, void):
    predicted_HW, label_HW = blobs(seed, void=void)
    assert (fast_counts(predicted_HW, label_HW) == slow_counts(predicted_HW, label_HW, CLASSES)).all()


def test_counts_of_noise_equal_the_slow_ones():
    rng = np.random.default_rng(1)
    predicted_HW, label_HW = rng.integers(0, CLASSES, (2, 20, 31))
    label_HW[rng.random(label_HW.shape) < 0.3] = 255
    assert (fast_counts(predicted_HW, label_HW) == slow_counts(predicted_HW, label_HW, CLASSES)).all()


def test_the_band_is_the_mask_less_its_repeated_erosion_where_nothing_is_ignored():
    """The authors' program erodes by 3x3 once for each pixel of the distance, with zeros around the image."""
    _, label_HW = blobs(5, void=False)
    distance = boundary_distance(*label_HW.shape)
    for k in range(CLASSES):
        mask_HW = eroded_HW = label_HW == k
        for _ in range(distance):
            padded = np.pad(eroded_HW, 1)
            shifts = [padded[y : y + 60, x : x + 90] for y in range(3) for x in range(3)]
            eroded_HW = np.logical_and.reduce(shifts)
        assert fast_counts(label_HW, label_HW)[0, k] == (mask_HW & ~eroded_HW).sum()


def test_the_distance_is_two_percent_of_the_diagonal_and_at_least_a_pixel():
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(360, 480) == 12
    assert boundary_distance(8, 8) == 1


def test_a_shift_costs_more_boundary_iou_than_iou():
    label_HW = np.zeros((100, 100), dtype=np.int64)
    label_HW[20:80, 20:80] = 1
    predicted_HW = np.roll(label_HW, 2, axis=1)
    confusion = Confusion(2, boundary=True)
    confusion.add(torch.from_numpy(predicted_HW)[None], torch.from_numpy(label_HW)[None])
    score = confusion.score(("a", "b"))
    assert score.per_class_boundary_iou["b"] < 0.55 < 0.9 < score.per_class_iou["b"]
    assert score.boundary_iou == pytest.approx(sum(score.per_class_boundary_iou.values()) / 2)


def test_void_makes_no_outline_and_a_class_without_one_is_none():
    label_HW = np.full((60, 60), 255)
    label_HW[20:40, 20:40] = 1
    assert (fast_counts(np.zeros_like(label_HW), label_HW)[:, 1:] == 0).all()
    confusion = Confusion(2, boundary=True)
    confusion.add(torch.ones(1, 60, 60, dtype=torch.long), torch.from_numpy(label_HW)[None])
    score = confusion.score(("a", "b"))
    assert score.per_class_iou["b"] == 1.0
    assert score.boundary_iou is None and score.per_class_boundary_iou == {"a": None, "b": None}
