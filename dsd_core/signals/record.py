"""A record: what one image's signals look like as bytes.

First the number of tensors of each signal, then the shape of each, three numbers of 16 bits, then their values: half
precision, or one byte for ids. A record says its own shapes, so those of images of several sizes need no table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dsd_core.distill.signals import Signal

HALF, BYTE = np.dtype("<f2"), np.dtype("u1")
SHORT = np.dtype("<u2")
LARGEST = float(np.finfo(np.float16).max)

Shapes = dict[Signal, tuple[tuple[int, ...], ...]]
"""Of each signal's tensors, for one image."""
Loaded = dict[Signal, tuple[Tensor, ...]]
"""Signals of some images as they were kept: half precision or bytes, images first."""


def encode(values: Mapping[Signal, Sequence[Tensor]], *, top_k: int | None = None) -> list[bytes]:
    """The records of some images from their tensors, images first (N x C x H x W, N x K x K or N x K)."""
    parts = [[part for x in tensors for part in _parts(signal, x, top_k)] for signal, tensors in values.items()]
    counts = [len(of_signal) for of_signal in parts]
    arrays = [array for of_signal in parts for array in of_signal]
    shapes = [[*array.shape[1:], 0, 0][:3] for array in arrays]
    header = np.array([*counts, *(edge for shape in shapes for edge in shape)], dtype=SHORT).tobytes()
    rows = np.concatenate([_rows_of(array) for array in arrays], axis=1)
    return [header + row.tobytes() for row in rows]


def header_of(record: memoryview | bytes, signals: tuple[Signal, ...]) -> bytes:
    """What says the shapes of a record; those of images of one size have the same."""
    counts = np.frombuffer(record, SHORT, len(signals))
    return bytes(record[: 2 * len(signals) + 6 * int(counts.sum())])


def decode(
    records: Sequence[memoryview | bytes], signals: tuple[Signal, ...], classes: int, *, top_k: int | None = None
) -> Loaded:
    """What `encode` was given for each of some records with one header, in the order of `signals`. `classes` is K."""
    header = header_of(records[0], signals)
    layout, length = _layout(header, signals, top_k)
    values = np.stack([np.frombuffer(record, np.uint8, length, len(header)) for record in records])
    return {
        signal: _whole(signal, [_tensor(values, place) for place in places], classes, top_k)
        for signal, places in zip(signals, layout, strict=True)
    }


Place = tuple[int, int, np.dtype, tuple[int, ...]]
"""Where an array begins and ends after the header, its type and shape."""


@lru_cache(maxsize=256)
def _layout(header: bytes, signals: tuple[Signal, ...], top_k: int | None) -> tuple[tuple[tuple[Place, ...], ...], int]:
    """Where the arrays of each signal lie, and where the last ends."""
    counts = np.frombuffer(header, SHORT, len(signals)).tolist()
    rows = iter(np.frombuffer(header, SHORT, offset=2 * len(signals)).reshape(-1, 3).tolist())
    found, start = [], 0
    for signal, count in zip(signals, counts, strict=True):
        places: list[Place] = []
        for number in range(count):
            dtypes, shape = _dtypes(signal, top_k), tuple(edge for edge in next(rows) if edge)
            dtype = dtypes[number % len(dtypes)]
            end = start + math.prod(shape) * dtype.itemsize
            places.append((start, end, dtype, shape))
            start = _even(end)
        found.append(tuple(places))
    return tuple(found), start


def _rows_of(array: np.ndarray) -> np.ndarray:
    """An array's bytes, a row an image. Of maps column by column, each with all channels: so that a view's columns are
    read first, and in one piece. Every array begins at an even byte."""
    lying = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    rows = np.ascontiguousarray(lying).reshape(len(array), -1).view(np.uint8)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))) if rows.shape[1] % 2 else rows


def _tensor(values: np.ndarray, place: Place) -> Tensor:
    """An array of all images at once, from the images' bytes."""
    start, end, dtype, shape = place
    array = values[:, start:end].view(dtype)
    if len(shape) < 3:
        return torch.from_numpy(array.reshape(-1, *shape))
    channels, height, width = shape
    return torch.from_numpy(array.reshape(-1, width, channels, height)).permute(0, 2, 3, 1)


def _even(count: int) -> int:
    return count + count % 2


def capacity(shapes: Shapes, probed: tuple[int, int], size: tuple[int, int], *, top_k: int | None = None) -> int:
    """The most bytes a record takes of an image of `size`, where one of `probed` has signals of these `shapes`."""
    grown = [(signal, _grown(shape, probed, size)) for signal, several in shapes.items() for shape in several]
    values = sum(_bytes(signal, shape, top_k) for signal, shape in grown)
    tensors = sum(len(_dtypes(signal, top_k)) * len(several) for signal, several in shapes.items())
    return 2 * len(shapes) + 6 * tensors + values


def _grown(shape: tuple[int, ...], probed: tuple[int, int], size: tuple[int, int]) -> tuple[int, ...]:
    """A map's shape for an image of another size, rounded up, with a row and a column to spare for padding."""
    if len(shape) != 3 or size == probed:
        return shape
    rows, columns = (math.ceil(side * new / old) + 1 for side, new, old in zip(shape[1:], size, probed, strict=True))
    return shape[0], rows, columns


def _bytes(signal: Signal, shape: tuple[int, ...], top_k: int | None) -> int:
    if signal.kept == "logits" and top_k is not None:
        return 2 * (top_k + 1) * math.prod(shape[1:]) + _even(top_k * math.prod(shape[1:]))
    return _even(math.prod(shape)) if signal.kept == "ids" else 2 * math.prod(shape)


def _dtypes(signal: Signal, top_k: int | None) -> tuple[np.dtype, ...]:
    """Of the arrays that one tensor becomes."""
    if signal.kept == "logits" and top_k is not None:
        return HALF, BYTE
    return (BYTE,) if signal.kept == "ids" else (HALF,)


def _parts(signal: Signal, tensor: Tensor, top_k: int | None) -> Iterable[np.ndarray]:
    if signal.kept == "ids":
        return [tensor.to(torch.uint8).cpu().numpy()]
    if signal.kept == "logits" and top_k is not None:
        return _largest(tensor.float(), min(top_k, tensor.shape[1]))
    if signal.kept == "scaled":
        largest = tensor.flatten(1).amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        tensor = tensor / largest.view(-1, *[1] * (tensor.dim() - 1))
    return [_half(tensor)]


def _half(tensor: Tensor) -> np.ndarray:
    return tensor.float().clamp(-LARGEST, LARGEST).half().cpu().numpy()


def _largest(logits_NKHW: Tensor, k: int) -> list[np.ndarray]:
    """The k largest logits of each position with their classes, and the logit that all others get: their probabilities
    keep their sum."""
    values, classes = logits_NKHW.topk(k, dim=1)
    others = logits_NKHW.shape[1] - k
    rest = logits_NKHW.scatter(1, classes, -torch.inf).logsumexp(dim=1) - math.log(max(others, 1))
    return [_half(torch.cat([values, rest.unsqueeze(1)], dim=1)), classes.to(torch.uint8).cpu().numpy()]


def _whole(signal: Signal, tensors: list[Tensor], classes: int, top_k: int | None) -> tuple[Tensor, ...]:
    if signal.kept != "logits" or top_k is None:
        return tuple(tensors)
    return tuple(
        values[:, -1:].expand(-1, classes, -1, -1).scatter(1, picked.long(), values[:, :-1])
        for values, picked in zip(tensors[::2], tensors[1::2], strict=True)
    )
