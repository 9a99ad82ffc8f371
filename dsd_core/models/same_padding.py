"""Depthwise convolutions with TensorFlow's padding, without a padded copy of what they take."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, nn


class DepthwiseSame(Conv2dSame):
    """timm's, of dilation 1, with the same values. Where a side is to be padded by an odd number, one more after than
    before it, the kernel begins with a zero instead: a convolution can pad both alike by itself."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            get_same_padding(side, kernel, stride, 1)
            for side, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        weight = F.pad(self.weight, (width % 2, 0, height % 2, 0))
        padding = ((height + 1) // 2, (width + 1) // 2)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def pad_in_kernels(network: nn.Module) -> None:
    """Turn timm's depthwise convolutions that copy their input to pad it into those that do not, on a CPU: the copy
    takes up to six times as long as the convolution. With other convolutions the longer kernel would cost as much."""
    for module in network.modules():
        depthwise = type(module) is Conv2dSame and module.groups == module.in_channels
        if depthwise and module.dilation == (1, 1) and module.weight.device.type == "cpu":
            module.__class__ = DepthwiseSame
