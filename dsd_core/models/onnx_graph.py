"""Write a segmenter as an ONNX graph that takes any number of images of any size."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from dsd_core.models.segmenter import Exportable, Segmenter

OPSET = 18
_TRACED_SIZE = (100, 140)  # no multiple of a stride, so that padding and cropping are in the trace


def write_onnx(segmenter: Segmenter, path: Path) -> None:
    """Write the graph: `image` uint8 RGB [N, H, W, 3] to `logits` float32 [N, K, H, W], preprocessing inside.

    torch's exporter by tracing is used: it is deprecated, but takes 2 to 5 seconds where torch.export, which reasons
    about symbolic sizes through every layer, takes one to ten minutes for the same graph.
    """
    device = next(segmenter.parameters()).device
    images_NHW3 = torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8, device=device)
    dynamic = {"image": {0: "N", 1: "H", 2: "W"}, "logits": {0: "N", 2: "H", 3: "W"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        # A constant that the exporter leaves to the runtime to compute; padding of channels has one.
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        torch.onnx.export(
            Exportable(_with_exportable_pools(segmenter)).eval(),
            (images_NHW3,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=dynamic,
        )


class MatmulPool(nn.Module):
    """Adaptive average pooling as two matrix products, which export at any size of input.

    Output i averages the inputs from floor(i * size / bins) to ceil((i + 1) * size / bins), as torch's does.
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x_NCHW: Tensor) -> Tensor:
        rows = _averages(x_NCHW.shape[2], self.bins[0], x_NCHW)
        columns = _averages(x_NCHW.shape[3], self.bins[1], x_NCHW)
        return rows @ x_NCHW @ columns.transpose(0, 1)


def _averages(size: int, bins: int, like: Tensor) -> Tensor:
    """Matrix bins x size that averages over each bin's inputs."""
    position = torch.arange(size, device=like.device)
    first = torch.arange(bins, device=like.device)[:, None]
    inside = (position >= first * size // bins) & (position < ((first + 1) * size + bins - 1) // bins)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


class PyramidBranch(nn.Module):
    """A pooled branch of PSPNet as it runs outside exporters; smp's own switches to another pooling while exporting."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.interpolate(self.pool(x_NCHW), size=x_NCHW.shape[2:], mode="bilinear", align_corners=True)


def _with_exportable_pools(segmenter: Segmenter) -> Segmenter:
    segmenter = copy.deepcopy(segmenter).eval()
    for name, part in list(segmenter.named_modules()):
        if type(part).__name__ == "PSPBlock":
            segmenter.set_submodule(name, PyramidBranch(part.pool))
        elif isinstance(part, nn.AdaptiveAvgPool2d) and _bins(part) != (1, 1):
            segmenter.set_submodule(name, MatmulPool(_bins(part)))
    return segmenter


def _bins(pool: nn.AdaptiveAvgPool2d) -> tuple[int, int]:
    size = pool.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    assert rows is not None and columns is not None  # None keeps a side, which no network here asks for
    return rows, columns
