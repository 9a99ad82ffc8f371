"""ONNX files as other frameworks' exporters write them, made from small torch modules."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FREE = {0: "N", 2: "H", 3: "W"}


def export(
    network: nn.Module, path: Path, *, image: Tensor | None = None, free: dict[int, str] | None = None, **names: Any
) -> Path:
    """Trace the network on `image`; `free` are its dimensions that may change, none for a graph of fixed size."""
    free = FREE if free is None else free
    image = torch.zeros(1, 3, 64, 96) if image is None else image
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter by tracing is deprecated, and warns of what it traces
        torch.onnx.export(
            network.eval(),
            (image,),
            path,
            dynamo=False,
            opset_version=18,
            input_names=["pixels"],
            output_names=names.pop("outputs", ["scores"]),
            dynamic_axes={"pixels": free} if free else None,
            **names,
        )
    return path


class Small(nn.Module):
    """Two stages at 1/4 and 1/8, and a head at 1/4 whose logits stay there."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.quarter = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
        self.eighth = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return self.head(self.up(self.eighth(self.quarter(images_N3HW))).relu())


class Then(nn.Module):
    """A network with something done to its input and output, as exports of whole pipelines have it."""

    def __init__(self, network: nn.Module, *, before: Any = lambda x: x, after: Any = lambda x: x) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.network(self.before(images)))
