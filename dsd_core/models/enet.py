"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation (Paszke, Chaurasia, Kim, Culurciello
2016).

Module names are those of the published weights: kind, stage, and place in the stage. Sizes are fractions of the
input's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.models.tap_names import TapNames

# Kind and dilation of the modules of stages 2 and 3 alike; an asymmetric one has a 5x1 and a 1x5 convolution.
_CONTEXT = (
    *(("regular", 1), ("dilated", 2), ("asymmetric", 1), ("dilated", 4)),
    *(("regular", 1), ("dilated", 8), ("asymmetric", 1), ("dilated", 16)),
)


class ENet(nn.Module):
    """ENet: an encoder of three stages to 1/8, and a small decoder that puts maxima back where they were found."""

    tap_names = TapNames(
        stages=("initial_block", "regular1_4", "dilated2_8", "dilated3_7"),
        head="regular5_1",
        logits="transposed_conv",
    )

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.initial_block = Initial()
        self.downsample1_0 = Down(16, 64, dropout=0.01)
        self._stage1 = self._add({f"regular1_{i}": Bottleneck(64, dropout=0.01) for i in range(1, 5)})
        self.downsample2_0 = Down(64, 128, dropout=0.1)
        self._stage2 = self._add(_context_stage(2, first=1))
        self._stage3 = self._add(_context_stage(3, first=0))
        self.upsample4_0 = Up(128, 64)
        self._stage4 = self._add({f"regular4_{i}": Bottleneck(64, dropout=0.1) for i in (1, 2)})
        self.upsample5_0 = Up(64, 16)
        self._stage5 = self._add({"regular5_1": Bottleneck(16, dropout=0.1)})
        self.transposed_conv = nn.ConvTranspose2d(16, classes, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits NKHW; H and W are multiples of 8."""
        half = self.initial_block(images_N3HW)
        quarter, maxima_half = self.downsample1_0(half)
        quarter = self._through(self._stage1, quarter)
        eighth, maxima_quarter = self.downsample2_0(quarter)
        eighth = self._through(self._stage3, self._through(self._stage2, eighth))
        up = self._through(self._stage4, self.upsample4_0(eighth, maxima_quarter))
        up = self._through(self._stage5, self.upsample5_0(up, maxima_half))
        return self.transposed_conv(up)

    def _add(self, modules: dict[str, Bottleneck]) -> tuple[str, ...]:
        for name, module in modules.items():
            self.add_module(name, module)
        return tuple(modules)

    def _through(self, names: tuple[str, ...], x_NCHW: Tensor) -> Tensor:
        for name in names:
            x_NCHW = self.get_submodule(name)(x_NCHW)
        return x_NCHW


def _context_stage(stage: int, first: int) -> dict[str, Bottleneck]:
    """The modules of stage 2 or 3, whose places are counted from `first`."""
    return {
        f"{kind}{stage}_{place}": Bottleneck(128, 0.1, dilation, asymmetric=kind == "asymmetric")
        for place, (kind, dilation) in enumerate(_CONTEXT, start=first)
    }


class Initial(nn.Module):
    """13 learned channels beside the pooled image, at 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.main_branch = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(16)
        self.out_prelu = nn.PReLU(16)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        joined = torch.cat([self.main_branch(images_N3HW), self.pool(images_N3HW)], dim=1)
        return self.out_prelu(self.batch_norm(joined))


class Bottleneck(nn.Module):
    """Residual: project to a quarter of the channels, convolve, expand."""

    def __init__(self, channels: int, dropout: float, dilation: int = 1, asymmetric: bool = False) -> None:
        super().__init__()
        inner = channels // 4
        self.ext_conv1 = nn.Sequential(*_conv(channels, inner, 1))
        if asymmetric:
            self.ext_conv2 = nn.Sequential(*_conv(inner, inner, (5, 1)), *_conv(inner, inner, (1, 5)))
        else:
            self.ext_conv2 = nn.Sequential(*_conv(inner, inner, 3, dilation=dilation))
        self.ext_conv3 = nn.Sequential(*_conv(inner, channels, 1))
        self.regularizer = nn.Dropout2d(dropout)
        self.out_prelu = nn.PReLU(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        learned = self.ext_conv3(self.ext_conv2(self.ext_conv1(x_NCHW)))
        return self.out_prelu(x_NCHW + self.regularizer(learned))


class Down(nn.Module):
    """Halves the size: maxima, with zeros for the channels that are new, plus a learned branch."""

    def __init__(self, channels_in: int, channels: int, dropout: float) -> None:
        super().__init__()
        inner = channels_in // 4
        self.new_channels = channels - channels_in
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, return_indices=True)
        self.ext_conv1 = nn.Sequential(*_conv(channels_in, inner, 2, stride=2))
        self.ext_conv2 = nn.Sequential(*_conv(inner, inner, 3))
        self.ext_conv3 = nn.Sequential(*_conv(inner, channels, 1))
        self.regularizer = nn.Dropout2d(dropout)
        self.out_prelu = nn.PReLU(channels)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and where in H*W each maximum was found."""
        maxima, where = self.pool(x_NCHW)
        kept = F.pad(maxima, (0, 0, 0, 0, 0, self.new_channels))
        learned = self.ext_conv3(self.ext_conv2(self.ext_conv1(x_NCHW)))
        return self.out_prelu(kept + self.regularizer(learned)), where


class Up(nn.Module):
    """Doubles the size: values go back to where `Down` found its maxima, plus a learned branch."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        inner = channels_in // 4
        self.main_conv1 = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.ext_conv1 = nn.Sequential(*_conv(channels_in, inner, 1))
        twice = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.ext_conv2 = nn.Sequential(twice, nn.BatchNorm2d(inner), nn.PReLU())
        self.ext_conv3 = nn.Sequential(*_conv(inner, channels, 1))
        self.regularizer = nn.Dropout2d(0.1)
        self.out_prelu = nn.PReLU(channels)

    def forward(self, x_NCHW: Tensor, where: Tensor) -> Tensor:
        kept = put_back(self.main_conv1(x_NCHW), where)
        learned = self.ext_conv3(self.ext_conv2(self.ext_conv1(x_NCHW)))
        return self.out_prelu(kept + self.regularizer(learned))


def put_back(x_NCHW: Tensor, where: Tensor) -> Tensor:
    """Twice the height and width, each value at its place in `where`, zero elsewhere, as `max_unpool2d` does.

    That has no ONNX operator; a scatter has. Where two windows had the same maximum, the later window's value stays
    (on CUDA, either's).
    """
    batch, channels, height, width = x_NCHW.shape
    flat = x_NCHW.new_zeros(batch, channels, 4 * height * width)
    return flat.scatter(2, where.flatten(2), x_NCHW.flatten(2)).view(batch, channels, 2 * height, 2 * width)


def _conv(
    channels_in: int, channels: int, kernel: int | tuple[int, int], stride: int = 1, dilation: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.PReLU]:
    """Convolution that keeps the size (or halves it with stride 2 and an even kernel), normalisation, activation."""
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = ((rows - 1) // 2 * dilation, (columns - 1) // 2 * dilation)
    conv = nn.Conv2d(channels_in, channels, (rows, columns), stride, padding, dilation, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.PReLU()
