"""Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov: "Boundary IoU", CVPR 2021): the IoU of two masks within a
distance d of their outlines.

Of the mask of a class, the pixels count that have one of another class within d (along the larger axis), or the end of
the image. d is 2 % of the image's diagonal, at least one pixel. A pixel whose label is 255 is in no mask and makes no
outline, of labels or of predictions: what lies there is not known.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_core.data.dataset import IGNORE

SHARE_OF_DIAGONAL = 0.02
LOWEST = torch.iinfo(torch.int16).min


def boundary_counts(predicted_NHW: Tensor, labels_NHW: Tensor, classes: int) -> Tensor:
    """int64 2 x K: pixels of each class in the intersection and in the union of the two bands."""
    valid = labels_NHW != IGNORE
    near_labels = band(labels_NHW, valid) & valid
    near_predicted = band(predicted_NHW, valid) & valid
    both = near_labels & near_predicted & (labels_NHW == predicted_NHW)
    intersection, of_labels, of_predicted = (
        torch.bincount(ids.long(), minlength=classes)
        for ids in (labels_NHW[both], labels_NHW[near_labels], predicted_NHW[near_predicted])
    )
    return torch.stack([intersection, of_labels + of_predicted - intersection])


def band(ids_NHW: Tensor, valid_NHW: Tensor) -> Tensor:
    """bool NHW: a valid pixel of another class, or the end of the image, lies within d. For all classes at once.

    A pixel is inside its class where the largest and the smallest id around it are the same.
    """
    distance = boundary_distance(*ids_NHW.shape[-2:])
    ids = ids_NHW.to(torch.int16)
    largest = _largest_within(ids.where(valid_NHW, LOWEST), distance)
    smallest = -_largest_within((-ids).where(valid_NHW, LOWEST), distance)
    near = largest != smallest
    near[:, :distance] = near[:, -distance:] = True
    near[..., :distance] = near[..., -distance:] = True
    return near


def boundary_distance(height: int, width: int) -> int:
    """d in pixels."""
    return max(1, round(SHARE_OF_DIAGONAL * math.hypot(height, width)))


def _largest_within(values_NHW: Tensor, distance: int) -> Tensor:
    """The maximum over the square of 2 d + 1 pixels around each pixel, one axis after the other."""
    padded = F.pad(values_NHW, (distance,) * 4, value=LOWEST)
    return _largest_of_run(_largest_of_run(padded, 1, 2 * distance + 1), 2, 2 * distance + 1)


def _largest_of_run(values: Tensor, dim: int, length: int) -> Tensor:
    """The maximum of each run of `length` values along `dim`, by doubling: log2(length) comparisons a value."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        kept = values.shape[dim] - step
        values = torch.maximum(values.narrow(dim, 0, kept), values.narrow(dim, step, kept))
        reach += step
    return values
