"""PSPNet as structured knowledge distillation (SKD, IFVD) trains it: teacher on ResNet-101, students on ResNet-18.

Pyramid Scene Parsing Network (Zhao et al., CVPR 2017) on a ResNet (He et al., CVPR 2016) with a stem of three
convolutions and stages 3 and 4 dilated, so that all is at 1/8 from stage 2 on. Activations of the pyramid and the
auxiliary head are leaky, as in the activated batch norm of that protocol's code. The ResNet's tensors have the names
they have in torchvision (`layer1.0.conv1`, `downsample`), so that files of it trained on ImageNet fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.models.auxiliary import is_wanted
from dsd_core.models.tap_names import TapNames

BINS = (1, 2, 3, 6)
SLOPE = 0.01  # of the leaky activations
DROPOUT = 0.1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(channels_in, width, 3, stride, dilation)
        self.conv2, self.bn2 = _conv_bn(width, width, 3, dilation=dilation)
        self.downsample = _skip(channels_in, width, stride)
        self.act = nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x_NCHW)))
        return self.act(self.bn2(self.conv2(y)) + self.downsample(x_NCHW))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a skip."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(channels_in, width, 1)
        self.conv2, self.bn2 = _conv_bn(width, width, 3, stride, dilation)
        self.conv3, self.bn3 = _conv_bn(width, self.expansion * width, 1)
        self.downsample = _skip(channels_in, self.expansion * width, stride)
        self.act = nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x_NCHW)))
        y = self.act(self.bn2(self.conv2(y)))
        return self.act(self.bn3(self.conv3(y)) + self.downsample(x_NCHW))


class PSPNet(nn.Module):
    """`depths` blocks in the four stages of `width`, 2, 4, 8 times `width`; the pyramid's outputs have `pyramid`
    channels.

    `auxiliary` classifies stage 3 and runs only where it is wanted. `width` is 64 in ResNets of full width.
    """

    tap_names = TapNames(
        stages=("layer1", "layer2", "layer3", "layer4"),
        head="pyramid",
        logits="classifier",
        auxiliary="auxiliary",
    )

    def __init__(
        self,
        classes: int,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        width: int,
        pyramid: int,
    ) -> None:
        super().__init__()
        w, e = width, block.expansion
        self.conv1, self.bn1 = _conv_bn(3, w, 3, stride=2)
        self.conv2, self.bn2 = _conv_bn(w, w, 3)
        self.conv3, self.bn3 = _conv_bn(w, 2 * w, 3)
        self.act = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(block, depths[0], 2 * w, w)
        self.layer2 = _stage(block, depths[1], e * w, 2 * w, stride=2)
        self.layer3 = _stage(block, depths[2], e * 2 * w, 4 * w, dilation=2)
        self.layer4 = _stage(block, depths[3], e * 4 * w, 8 * w, dilation=4)
        self.pyramid = Pyramid(e * 8 * w, pyramid)
        self.classifier = nn.Conv2d(pyramid, classes, 1)
        self.auxiliary = nn.Sequential(
            *(nn.Conv2d(e * 4 * w, pyramid, 3, padding=1), nn.BatchNorm2d(pyramid), nn.LeakyReLU(SLOPE)),
            *(nn.Dropout2d(DROPOUT), nn.Conv2d(pyramid, classes, 1)),
        )
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits NKHW. A side of 8 n pixels has n + 1 grid points, whose first and last lie on the image's edges."""
        third = self.layer3(self.layer2(self.layer1(self._stem(images_N3HW))))
        if is_wanted(self.auxiliary):
            self.auxiliary(third)
        logits = self.classifier(self.dropout(self.pyramid(self.layer4(third))))
        return F.interpolate(logits, size=images_N3HW.shape[2:], mode="bilinear", align_corners=True)

    @property
    def encoder(self) -> nn.ModuleDict:
        """The ResNet alone, for files of a backbone; the modules are those of this network."""
        stem = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
        return nn.ModuleDict({name: self.get_submodule(name) for name in (*stem, *self.tap_names.stages)})

    def _stem(self, images_N3HW: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(images_N3HW)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.maxpool(self.act(self.bn3(self.conv3(x))))


class Pyramid(nn.Module):
    """The features beside their averages over 1, 4, 9 and 36 regions, joined by a 3x3 convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d((bins, bins)), *_conv_bn(channels_in, channels, 1), nn.LeakyReLU(SLOPE))
            for bins in BINS
        )
        joined = channels_in + len(BINS) * channels
        self.join = nn.Sequential(*_conv_bn(joined, channels, 3), nn.LeakyReLU(SLOPE))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        size = x_NCHW.shape[2:]
        pooled = [F.interpolate(branch(x_NCHW), size, mode="bilinear", align_corners=True) for branch in self.branches]
        return self.join(torch.cat([*pooled, x_NCHW], dim=1))


def pspnet_r101(classes: int) -> PSPNet:
    """The protocol's teacher: 70.44 M parameters with 19 classes, auxiliary head included."""
    return PSPNet(classes, Bottleneck, (3, 4, 23, 3), width=64, pyramid=512)


def pspnet_r18(classes: int) -> PSPNet:
    """The protocol's student: 13.07 M parameters with 19 classes, auxiliary head included."""
    return PSPNet(classes, BasicBlock, (2, 2, 2, 2), width=64, pyramid=128)


def pspnet_r18_half(classes: int) -> PSPNet:
    """`pspnet_r18` with half the channels everywhere."""
    return PSPNet(classes, BasicBlock, (2, 2, 2, 2), width=32, pyramid=64)


def _stage(
    block: type[BasicBlock | Bottleneck], depth: int, channels_in: int, width: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    channels = block.expansion * width
    further = (block(channels, width, 1, dilation) for _ in range(depth - 1))
    return nn.Sequential(block(channels_in, width, stride, dilation), *further)


def _skip(channels_in: int, channels: int, stride: int) -> nn.Module:
    same = channels_in == channels and stride == 1
    return nn.Identity() if same else nn.Sequential(*_conv_bn(channels_in, channels, 1, stride))


def _conv_bn(
    channels_in: int, channels: int, kernel: int, stride: int = 1, dilation: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, dilation, bias=False)
    return conv, nn.BatchNorm2d(channels)
