"""Maps of a whole image, seen through a view, are what the view shows of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsd_core.data.views import View, draw_view, place_view
from dsd_core.signals.sampling import sample
from dsd_core.spec import Augment

IMAGE = (24, 32)
WHOLE = View(IMAGE, (slice(0, 24), slice(0, 32)), (slice(0, 24), slice(0, 32)), False, 1.0, (1, 1, 1))


def random_map(height: int, width: int, channels: int = 2) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))


def crop_of(rows: slice, columns: slice, *, flipped: bool = False) -> View:
    """A part of the image at its own size."""
    size = rows.stop - rows.start, columns.stop - columns.start
    return View(size, (rows, columns), (slice(0, size[0]), slice(0, size[1])), flipped, 1.0, (1, 1, 1))


def seen(map_CHW: Tensor, view: View, grid: tuple[int, int], *, ids: bool = False) -> Tensor:
    return sample(map_CHW.unsqueeze(0), [view], [IMAGE], grid, ids=ids)[0]


def test_a_view_of_the_whole_image_has_its_map() -> None:
    there = random_map(6, 8)
    assert torch.allclose(seen(there, WHOLE, (6, 8)), there, atol=1e-6)


def test_a_crop_on_the_grid_of_the_map_is_a_part_of_it() -> None:
    there, view = random_map(6, 8), crop_of(slice(4, 20), slice(8, 32))
    assert torch.allclose(seen(there, view, (4, 6)), there[:, 1:5, 2:8], atol=1e-6)


def test_a_mirrored_crop_is_mirrored() -> None:
    there, view = random_map(6, 8), crop_of(slice(4, 20), slice(8, 32), flipped=True)
    assert torch.allclose(seen(there, view, (4, 6)), there[:, 1:5, 2:8].flip(-1), atol=1e-6)


def test_a_view_on_a_coarser_grid_has_weighted_means_that_keep_the_level() -> None:
    assert torch.allclose(seen(torch.ones(1, 6, 8), WHOLE, (2, 3)), torch.ones(1, 2, 3))
    there = random_map(6, 8)
    coarse = seen(there, WHOLE, (3, 4))
    assert coarse.std() < there.std() and coarse.mean().item() == pytest.approx(there.mean().item(), abs=0.05)


def test_ids_are_never_mixed() -> None:
    ids = torch.randint(0, 2, (1, 24, 32), generator=torch.Generator().manual_seed(1)).mul(200).to(torch.uint8)
    found = seen(ids, crop_of(slice(3, 17), slice(5, 21)), (7, 5), ids=True)
    assert found.dtype == torch.uint8 and set(found.unique().tolist()) <= {0, 200}
    assert torch.equal(seen(ids, crop_of(slice(3, 17), slice(5, 21)), (14, 16), ids=True), ids[:, 3:17, 5:21])


def test_maps_of_images_of_several_sizes_are_seen_each_by_its_own_view() -> None:
    maps, sizes = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(2)), [IMAGE, (48, 32)]
    views = [WHOLE, crop_of(slice(4, 28), slice(0, 32))]
    together = sample(maps, views, sizes, (6, 8), ids=False)
    alone = [
        sample(maps[row : row + 1], views[row : row + 1], sizes[row : row + 1], (6, 8), ids=False) for row in (0, 1)
    ]
    assert torch.equal(together, torch.cat(alone))


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([(16, 24), (24, 32), (40, 40)]))
def test_a_map_is_seen_where_the_view_shows_its_pixels(seed: int, flip: bool, crop: tuple[int, int]) -> None:
    """The image is its own coordinates; what lies in the view at a cell's centre is what the map is asked for."""
    augment = Augment(crop=crop, scale=(0.6, 1.8), flip=float(flip), brightness=0, contrast=0, saturation=0)
    key = (seed, 0, 0)
    rows, columns = np.meshgrid(np.arange(24), np.arange(32), indexing="ij")
    image = np.stack([rows * 8, columns * 8, rows * 0], axis=2).astype(np.uint8)
    shown, label = draw_view(image, np.zeros(IMAGE, np.uint8), augment, key)
    coordinates = torch.from_numpy(image).permute(2, 0, 1)[:2].float()
    found = seen(coordinates, place_view(IMAGE, augment, key), crop)
    inside = label == 0
    # a pixel of the image is 8 steps of its coordinate; the view's own resampling rounds to whole steps
    assert (found - shown[:2].float()).abs().amax(dim=0)[inside].max() <= 9
