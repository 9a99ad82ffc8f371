"""Image signals for views: maps of a whole image, looked at through the geometry of a view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_core.data.views import View

Size = tuple[int, int]


def sample(
    maps_NCHW: Tensor,
    views: Sequence[View],
    images: Sequence[Size],
    grid: Size,
    *,
    ids: bool,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Maps of whole images to N x C x grid on the device, one a view of an image of the size (height, width) in
    `images`.

    Values are read at the centres of the view's cells: bilinear, averaged where cells of the map are smaller than the
    view's, and of `ids` the nearest. Beyond the image the border is repeated.
    """
    maps_NCHW = maps_NCHW.to(device, non_blocking=True)
    spans = np.array([(_spans(view, 0), _spans(view, 1)) for view in views], dtype=np.float64)
    mirrored = np.array([[view.flipped] for view in views])
    sides = np.array(images, dtype=np.float64)
    rows, columns = (
        _positions(
            spans[:, axis],
            mirrored & (axis == 1),
            views[0].crop[axis] / grid[axis],
            grid[axis],
            maps_NCHW.shape[axis + 2] / sides[:, axis : axis + 1],
            int(maps_NCHW.shape[axis + 2]),
        )
        for axis in (0, 1)
    )
    if ids:
        return _nearest(maps_NCHW, rows[0], columns[0])
    # Whole lines of a map are neighbours in memory, first its columns, then its rows.
    columns_NWCH = maps_NCHW.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    across_NWCH = _blended(columns_NWCH, *columns)
    down_NHCW = _blended(across_NWCH.permute(0, 3, 2, 1).contiguous(), *rows)
    return down_NHCW.transpose(1, 2)


def _spans(view: View, axis: int) -> tuple[int, int, int, int]:
    """Where the part of the image that is seen begins and ends, and where it does in the crop."""
    inside, placed = view.inside[axis], view.placed[axis]
    return inside.start, inside.stop, placed.start, placed.stop


def _positions(
    spans: np.ndarray, mirrored: np.ndarray, cell: float, cells: int, per_pixel: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the centres of the cells lie along an axis of maps of `length`, N x cells, in cells of the map from its
    first centre; and how far they lie apart, N x 1. `cell` has so many pixels of the crop, and a pixel of the image
    `per_pixel` of the map's cells."""
    start, stop, first, last = (spans[:, place : place + 1] for place in range(4))
    ratio = (stop - start) / (last - first)
    along = ((np.arange(cells) + 0.5) * cell - first) * ratio
    pixels = np.where(mirrored, stop - along, start + along)
    return np.clip(pixels * per_pixel - 0.5, 0, length - 1), cell * ratio * per_pixel


def _blended(lines: Tensor, positions: np.ndarray, apart: np.ndarray) -> Tensor:
    """Weighted means of the lines, N x length x ..., about positions, N x cells."""
    count, length = lines.shape[:2]
    which, weights = _neighbours(positions, apart, length)
    found = F.embedding_bag(
        torch.from_numpy(which).to(lines.device),
        lines.reshape(count * length, -1),
        mode="sum",
        per_sample_weights=torch.from_numpy(weights).to(lines.device),
    )
    return found.reshape(count, -1, *lines.shape[2:])


def _neighbours(positions: np.ndarray, apart: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of N x cells positions, the lines about it, counted through all N, and their weights, which sum to 1:
    triangles as wide as the cells lie apart, and at least one line of the map to each side."""
    reach = np.maximum(apart, 1.0)[:, :, None]
    centres = positions[:, :, None]
    lines = np.floor(centres - reach) + np.arange(1, np.ceil(2 * reach.max()) + 1)
    weights = np.maximum(1 - np.abs(lines - centres) / reach, 0) * ((lines >= 0) & (lines < length))
    weights /= weights.sum(axis=2, keepdims=True)
    which = np.clip(lines, 0, length - 1) + length * np.arange(len(positions))[:, None, None]
    cells = positions.size
    return which.reshape(cells, -1).astype(np.int64), weights.reshape(cells, -1).astype(np.float32)


def _nearest(maps_NCHW: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    down, across = (torch.from_numpy(np.rint(at).astype(np.int64)).to(maps_NCHW.device) for at in (rows, columns))
    images = torch.arange(len(maps_NCHW), device=maps_NCHW.device)
    return maps_NCHW[images[:, None, None], :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
