"""ESPNet: Efficient Spatial Pyramid of Dilated Convolutions (Mehta, Rastegari, Caspi, Shapiro, Hajishirzi, ECCV 2018).

Module names are those of the published weights. Sizes below are fractions of the input's height and width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.models.tap_names import TapNames

DILATIONS = (2, 4, 8, 16)
EPS = 1e-3
_STAGES = ("encoder.level1", "encoder.level2", "encoder.level3")  # 1/2, 1/4, 1/8


class ESPNet(nn.Module):
    """ESPNet with `p` and `q` ESP modules at levels 2 and 3 (the paper's alpha2, alpha3), three learned up-samplings.

    `image_in_skip`: the skip from level 1 to the last convolution carries the pooled image beside the features, 19
    channels in place of 16. Published weights for CamVid have it, those for Cityscapes have not.
    """

    tap_names = TapNames(_STAGES, head="conv", logits="classifier")

    def __init__(self, classes: int, p: int = 2, q: int = 8, image_in_skip: bool = True) -> None:
        super().__init__()
        self.image_in_skip = image_in_skip
        width = max(classes, 5)  # the ESP module of the decoder needs a channel for each of its five branches
        self.encoder = Encoder(width, p, q)
        self.br = nn.BatchNorm2d(width, eps=EPS)
        self.up_l3 = nn.Sequential(_twice_as_large(width, width))
        self.level3_C = _conv(131, width, 1)
        self.combine_l2_l3 = nn.Sequential(_bn_act(2 * width), ESP(2 * width, width))
        self.up_l2 = nn.Sequential(_twice_as_large(width, width), _bn_act(width))
        self.conv = _conv_bn_act((19 if image_in_skip else 16) + width, width)
        self.classifier = _twice_as_large(width, classes)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits NKHW; H and W are multiples of 8."""
        half, half_with_image, quarter, eighth = self.encoder(images_N3HW)
        deep = self.up_l3(self.br(self.encoder.classifier(eighth)))
        joined = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(quarter), deep], dim=1)))
        skip = half_with_image if self.image_in_skip else half
        return self.classifier(self.conv(torch.cat([joined, skip], dim=1)))


class ESPNetC(nn.Module):
    """ESPNet-C: the encoder of ESPNet alone, its logits at 1/8 brought to the size of the image bilinearly.

    Its tensors have the names that they have in ESPNet, which the paper trains in this form first.
    """

    tap_names = TapNames(_STAGES, head="encoder.b3", logits="encoder.classifier")

    def __init__(self, classes: int, p: int = 2, q: int = 8) -> None:
        super().__init__()
        self.encoder = Encoder(classes, p, q)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits NKHW; H and W are multiples of 8."""
        *_, eighth = self.encoder(images_N3HW)
        return F.interpolate(self.encoder.classifier(eighth), scale_factor=8, mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """Levels 1 to 3; the pooled image is joined to levels 1 and 2, the down-sampled features to levels 2 and 3."""

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.level1 = _conv_bn_act(3, 16, stride=2)
        self.b1 = _bn_act(16 + 3)
        self.level2_0 = DownESP(16 + 3, 64)
        self.level2 = nn.Sequential(*(ESP(64, 64) for _ in range(p)))
        self.b2 = _bn_act(2 * 64 + 3)
        self.level3_0 = DownESP(2 * 64 + 3, 128)
        self.level3 = nn.Sequential(*(ESP(128, 128) for _ in range(q)))
        self.b3 = _bn_act(2 * 128)
        self.classifier = _conv(2 * 128, outputs, 1)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features at 1/2 without and with the image, at 1/4, and at 1/8."""
        image_half = self.pool(images_N3HW)
        image_quarter = self.pool(image_half)
        half = self.level1(images_N3HW)
        half_with_image = self.b1(torch.cat([half, image_half], dim=1))
        down = self.level2_0(half_with_image)
        quarter = self.b2(torch.cat([self.level2(down), down, image_quarter], dim=1))
        down = self.level3_0(quarter)
        eighth = self.b3(torch.cat([down, self.level3(down)], dim=1))
        return half, half_with_image, quarter, eighth


class Pyramid(nn.Module):
    """Reduce to a fifth of the channels, then five parallel 3x3 convolutions of dilation 1 to 16.

    The dilated four are summed hierarchically before they are joined, which removes gridding (the paper's section 3.2).
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        fifth = channels // 5
        self.c1 = _conv(channels_in, fifth, kernel, stride=stride)
        self.d1 = _conv(fifth, channels - 4 * fifth, 3)
        for dilation in DILATIONS:
            self.add_module(f"d{dilation}", _conv(fifth, fifth, 3, dilation=dilation))

    def branches(self, x_NCHW: Tensor) -> Tensor:
        reduced = self.c1(x_NCHW)
        sums = [self.get_submodule(f"d{DILATIONS[0]}")(reduced)]
        for dilation in DILATIONS[1:]:
            sums.append(sums[-1] + self.get_submodule(f"d{dilation}")(reduced))
        return torch.cat([self.d1(reduced), *sums], dim=1)


class ESP(Pyramid):
    """The ESP module at constant size; residual where it keeps the number of channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, kernel=1, stride=1)
        self.residual = channels_in == channels
        self.bn = _bn_act(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        joined = self.branches(x_NCHW)
        return self.bn(x_NCHW + joined if self.residual else joined)


class DownESP(Pyramid):
    """The ESP module that halves the size, by a strided 3x3 in place of the 1x1; never residual."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.act(self.bn(self.branches(x_NCHW)))


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(OrderedDict(conv=conv))


def _bn_act(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels, eps=EPS), act=nn.PReLU(channels)))


def _conv_bn_act(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    parts = OrderedDict(_conv(channels_in, channels, 3, stride=stride).named_children())
    return nn.Sequential(parts | OrderedDict(_bn_act(channels).named_children()))


def _twice_as_large(channels_in: int, channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=False)
