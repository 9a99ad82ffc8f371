"""Views: functions of their key alone, true to image and label."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dsd_core.data import open_dataset
from dsd_core.data.views import draw_view
from dsd_core.spec import Augment

PLAIN = {"scale": (1.0, 1.0), "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
SCENE = open_dataset("streets", None, "train")[3]

DIGESTS = """
import hashlib, torch
from dsd_core.data import open_dataset
from dsd_core.data.views import draw_view
from dsd_core.spec import Augment
torch.set_num_threads(2)
torch.manual_seed(77)
item = open_dataset("streets", None, "train")[3]
for number in range(8):
    image, label = draw_view(*item, Augment(crop=(64, 96), scale=(0.4, 2.0)), (5, 2, number))
    print(hashlib.sha256(image.contiguous().numpy().tobytes() + label.numpy().tobytes()).hexdigest())
"""


def view(key: tuple[int, int, int] = (0, 0, 0), **augment: object) -> tuple[Tensor, Tensor]:
    return draw_view(*SCENE, Augment.model_validate(augment), key)


def digest(drawn: tuple[Tensor, Tensor]) -> str:
    image, label = drawn
    return hashlib.sha256(image.contiguous().numpy().tobytes() + label.numpy().tobytes()).hexdigest()


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is the row and green the column, and a label of stripes 16 columns wide."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return image, (columns // 16).astype(np.uint8)


def test_view_is_bytes_of_the_crops_size() -> None:
    image, label = view(crop=(64, 96))
    assert image.dtype == torch.uint8 and image.shape == (3, 64, 96)
    assert label.dtype == torch.int64 and label.shape == (64, 96)


def test_without_crop_the_view_has_the_images_size() -> None:
    image, label = view()
    assert image.shape == (3, 96, 160) and label.shape == (96, 160)


def test_view_that_changes_nothing_is_the_image() -> None:
    image, label = view(**PLAIN)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), SCENE[0])
    assert np.array_equal(label.numpy(), SCENE[1])


def test_same_key_gives_the_same_bytes_in_another_process_with_other_threads_and_seed() -> None:
    here = [digest(view((5, 2, number), crop=(64, 96), scale=(0.4, 2.0))) for number in range(8)]
    there = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, check=True)
    assert there.stdout.split() == here


def test_views_of_other_seeds_epochs_and_images_differ() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**62, 0, 0), (0, 0, 2**40)]
    assert len({digest(view(key, crop=(64, 96))) for key in keys}) == len(keys)


def test_global_generators_neither_matter_nor_move() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = digest(view((3, 4, 5), crop=(64, 96)))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    torch.manual_seed(2)
    np.random.seed(2)
    assert digest(view((3, 4, 5), crop=(64, 96))) == first
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]


def test_source_is_left_as_it_is() -> None:
    image, label = SCENE[0].copy(), SCENE[1].copy()
    for number in range(5):
        view((0, 0, number))[0].fill_(0)
    assert np.array_equal(SCENE[0], image) and np.array_equal(SCENE[1], label)


@settings(deadline=None, max_examples=60)
@given(
    key=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 10**6)),
    crop=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    scale=st.tuples(st.floats(0.11, 4), st.floats(0.11, 4)).map(sorted).map(tuple),
)
def test_labels_are_never_interpolated(
    key: tuple[int, int, int], crop: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    label_HW = rng.choice(np.array([0, 4, 10, 255], dtype=np.uint8), size)
    image_HW3 = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image, label = draw_view(image_HW3, label_HW, Augment(crop=crop, scale=scale), key)
    assert image.shape == (3, *crop) and label.shape == crop
    assert set(label.unique().tolist()) <= {0, 4, 10, 255}


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_outside_of_the_image_is_void_and_of_its_mean_colour(flip: float) -> None:
    image_HW3, label_HW = np.full((40, 40, 3), (10, 100, 200), np.uint8), np.full((40, 40), 7, np.uint8)
    image_HW3[:, :20] = (30, 120, 220)
    augment = Augment.model_validate({**PLAIN, "crop": (60, 80), "scale": (0.5, 0.5), "flip": flip})
    image, label = draw_view(image_HW3, label_HW, augment, (0, 0, 0))
    assert set(label.unique().tolist()) == {7, 255}
    assert int((label == 7).sum()) == 20 * 20
    assert (image[:, label == 255] == torch.tensor([[20], [110], [210]])).all()


def test_small_image_is_placed_in_many_ways() -> None:
    drawn = [view((0, 0, n), **{**PLAIN, "crop": (128, 192), "scale": (0.5, 0.5)})[1] for n in range(12)]
    corners = {tuple((label != 255).nonzero().amin(dim=0).tolist()) for label in drawn}
    assert len(corners) > 6


def test_flip_mirrors_image_and_label_together() -> None:
    image, label = view((0, 0, 9), **{**PLAIN, "crop": (64, 96)})
    flipped, flipped_label = view((0, 0, 9), **{**PLAIN, "crop": (64, 96), "flip": 1.0})
    assert torch.equal(flipped, image.flip(2)) and torch.equal(flipped_label, label.flip(1))
    assert not torch.equal(flipped, image)


def test_flip_happens_as_often_as_asked() -> None:
    item = coordinates(16, 32)
    augment = Augment.model_validate({**PLAIN, "flip": 0.25})
    flips = sum(draw_view(*item, augment, (0, epoch, 0))[0][1, 0, 0].item() > 0 for epoch in range(400))
    assert 70 < flips < 130


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0])
def test_image_and_label_show_the_same_place(scale: float) -> None:
    item = coordinates(200, 240)
    augment = Augment.model_validate({**PLAIN, "crop": (64, 64), "scale": (scale, scale), "flip": 0.5})
    for epoch in range(10):
        image, label = draw_view(*item, augment, (1, epoch, 0))
        column = image[1].float()
        far_from_edges = ((column % 16) > 3) & ((column % 16) < 13) & (label != 255)
        assert torch.equal((column // 16).long()[far_from_edges], label[far_from_edges])
        step = column[32, 40:60].diff().abs().mean().item()
        assert step == pytest.approx(1 / scale, rel=0.1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_label_stay_together_where_the_image_is_smaller_than_the_view(flip: float) -> None:
    item = coordinates(200, 240)
    augment = Augment.model_validate({**PLAIN, "crop": (64, 96), "scale": (0.25, 0.25), "flip": flip})
    for epoch in range(10):
        image, label = draw_view(*item, augment, (1, epoch, 0))
        column, inside = image[1].float(), label != 255
        assert int(inside.sum()) == 50 * 60
        assert column[inside].min() <= 3 and column[inside].max() >= 236
        far_from_edges = ((column % 16) > 4) & ((column % 16) < 12) & inside
        assert torch.equal((column // 16).long()[far_from_edges], label[far_from_edges])


def test_crops_cover_the_whole_image() -> None:
    item = coordinates(40, 60)
    augment = Augment.model_validate({**PLAIN, "crop": (20, 20)})
    corners = [draw_view(*item, augment, (0, epoch, 0))[0][:2, 0, 0].tolist() for epoch in range(500)]
    rows, columns = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 20, 0, 40)


def test_scales_are_spread_over_their_range() -> None:
    item = coordinates(200, 240)
    augment = Augment.model_validate({**PLAIN, "crop": (48, 48), "scale": (0.5, 2.0)})
    steps = []
    for epoch in range(200):
        image, _ = draw_view(*item, augment, (0, epoch, 0))
        steps.append(1 / image[1, 24, 8:40].float().diff().abs().mean().item())
    assert min(steps) < 0.6 and max(steps) > 1.7
    assert 0.35 < sum(step < 1 for step in steps) / len(steps) < 0.65


@pytest.mark.parametrize(
    ("name", "adjust"),
    [("brightness", F.adjust_brightness), ("contrast", F.adjust_contrast), ("saturation", F.adjust_saturation)],
)
def test_colour_changes_are_those_of_torchvision(name: str, adjust: object) -> None:
    """For one unknown factor of the range the view equals torchvision's, up to rounding."""
    image, _ = view((0, 0, 4), **{**PLAIN, name: 0.5})
    source = torch.from_numpy(SCENE[0].copy()).permute(2, 0, 1)
    assert not torch.equal(image, source)
    errors = [
        (adjust(source, factor).int() - image.int()).abs().float().mean().item()  # type: ignore[operator]
        for factor in np.linspace(0.5, 1.5, 201)
    ]
    assert min(errors) < 1.0
