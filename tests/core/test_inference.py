"""Sliding windows, scales and mirroring: what they must equal, and the windows against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dsd_core.errors import SpecError
from dsd_core.inference import predictor, sliding, starts
from dsd_core.spec import parse_evaluation

CLASSES = 3


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, 23, 31), dtype=torch.uint8, generator=generator)


def convolution(seed=0, *, symmetric=False):
    """A network that sees two pixels around each; with `symmetric` it treats left and right alike."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, CLASSES, 5, padding=2)
    if symmetric:
        layer.weight.data += layer.weight.data.flip(-1)
    return lambda images_N3HW: layer(images_N3HW.float() / 255).detach()


def with_options(**options):
    return parse_evaluation(options)


def test_a_window_as_large_as_the_image_gives_the_very_same_logits(images):
    whole = convolution()
    for window in ((23, 31), (40, 64)):
        found = predictor(whole, with_options(mode="sliding", window=window))(images)
        assert torch.equal(found, whole(images))


def test_one_scale_of_one_is_the_network_itself(images):
    whole = convolution()
    assert predictor(whole, with_options(scales=[1.0])) is whole


def test_mirroring_changes_nothing_for_a_network_that_is_symmetric(images):
    whole = convolution(symmetric=True)
    found = predictor(whole, with_options(flip=True))(images)
    assert torch.allclose(found.softmax(1), whole(images).softmax(1), atol=1e-6)
    lopsided = convolution()
    other = predictor(lopsided, with_options(flip=True))(images)
    assert not torch.allclose(other.softmax(1), lopsided(images).softmax(1), atol=1e-3)


def test_scales_and_mirroring_average_probabilities_at_the_size_of_the_image(images):
    """A network that sees only the mean colour has the same logits at every scale, whatever is resized."""

    def constant(images_N3HW):
        return torch.arange(CLASSES).float().view(1, -1, 1, 1).expand(len(images_N3HW), -1, *images_N3HW.shape[-2:])

    found = predictor(constant, with_options(scales=[0.5, 1.0, 1.75], flip=True))(images)
    assert found.shape == (2, CLASSES, 23, 31)
    assert torch.allclose(found.softmax(1), constant(images).softmax(1), atol=1e-6)
    seen = []

    def noting(images_N3HW):
        seen.append((images_N3HW.dtype, tuple(images_N3HW.shape[-2:])))
        return constant(images_N3HW) * len(seen)

    mean = predictor(noting, with_options(scales=[0.5, 2.0]))(images).softmax(1)
    assert seen == [(torch.uint8, (12, 16)), (torch.uint8, (46, 62))]
    expected = (torch.arange(CLASSES).float().softmax(0) + (2 * torch.arange(CLASSES).float()).softmax(0)) / 2
    assert torch.allclose(mean[0, :, 5, 5], expected, atol=1e-6)


def test_a_probability_of_zero_stays_a_finite_logit(images):
    def certain(images_N3HW):
        logits = torch.full((len(images_N3HW), CLASSES, *images_N3HW.shape[-2:]), -1e4)
        logits[:, 0] = 1e4
        return logits

    assert predictor(certain, with_options(flip=True))(images).isfinite().all()


def slow_sliding(logits_of, images, window, stride):
    """Windows one by one in NumPy, as a person would place them by hand."""
    count, _, height, width = images.shape
    sums, counts = np.zeros((count, CLASSES, height, width)), np.zeros((height, width))
    rows = max(math.ceil((height - window[0]) / stride[0]), 0) + 1
    columns = max(math.ceil((width - window[1]) / stride[1]), 0) + 1
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + window[0], height)
            right = min(column * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            sums[:, :, top:bottom, left:right] += logits_of(images[:, :, top:bottom, left:right]).numpy()
            counts[top:bottom, left:right] += 1
    assert counts.min() >= 1
    return sums / counts


@pytest.mark.parametrize(("window", "stride"), [((16, 16), (7, 11)), ((16, 40), (16, 16)), ((22, 30), (1, 29))])
def test_overlapping_windows_equal_a_slow_reference(window, stride, images):
    found = sliding(convolution(), window, stride)(images)
    assert found.numpy() == pytest.approx(slow_sliding(convolution(), images, window, stride), abs=1e-5)


def test_the_last_window_ends_with_the_image():
    assert starts(100, 40, 30) == [0, 30, 60]
    assert starts(101, 40, 30) == [0, 30, 60, 61]
    assert starts(40, 40, 30) == starts(7, 40, 30) == [0]


def test_the_stride_is_two_thirds_of_the_window_unless_given():
    assert with_options(mode="sliding", window=[512, 769]).stride == (342, 513)
    assert with_options(mode="sliding", window=[512, 769], stride=[256, 256]).stride == (256, 256)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"mode": "sliding"}, "", "needs `window`"),
        ({"window": [64, 64]}, "", "are for mode: sliding"),
        ({"stride": [64, 64]}, "", "are for mode: sliding"),
        ({"mode": "sliding", "window": [64, 64], "stride": [65, 1]}, "/stride", "leaves pixels out"),
        ({"scales": []}, "/scales", "at least 1"),
        ({"scales": [0.0]}, "/scales/0", "greater than or equal to 0.1"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, field, said):
    with pytest.raises(SpecError, match=said) as caught:
        with_options(**options)
    assert caught.value.field == field
