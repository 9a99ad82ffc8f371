"""From 8-bit RGB images to logits: the network with its preprocessing, at any image size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.network_spec import Preprocess


class Segmenter(nn.Module):
    """`network` with its own preprocessing. Its first `classes` outputs are kept; a further output, void, is left out.

    Images are padded at the right and bottom to multiples of `stride` with the mean colour, and logits cropped back.
    `network.state_dict()` has the names that are exported; the segmenter adds none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess, classes: int, stride: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.stride = stride
        self.reverse_channels = preprocess.order == "BGR"
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """uint8 RGB to float32 logits NKHW of the same height and width."""
        height, width = images_N3HW.shape[-2:]
        logits = self.network(self.prepare(images_N3HW))
        kept = logits[:, : self.classes, :height, :width].float()
        if logits.requires_grad and logits.is_contiguous(memory_format=torch.channels_last):
            logits.register_hook(_channels_last)
            return kept.contiguous()  # or each softmax in a loss would make such a copy for itself
        return kept

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the network is given for an image of this size."""
        return height + _missing(height, self.stride), width + _missing(width, self.stride)

    def prepare(self, images_N3HW: Tensor) -> Tensor:
        """What the network is given: channels in its order, normalised, padded."""
        height, width = images_N3HW.shape[-2:]
        if self.reverse_channels:
            images_N3HW = images_N3HW.flip(1)
        normalised = (images_N3HW.float() - self.mean) / self.std
        return F.pad(normalised, (0, _missing(width, self.stride), 0, _missing(height, self.stride)))


class Exportable(nn.Module):
    """The segmenter on images as files and cameras give them: uint8 RGB [N, H, W, 3] to logits [N, K, H, W]."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images_NHW3: Tensor) -> Tensor:
        return self.segmenter(images_NHW3.permute(0, 3, 1, 2))


def _channels_last(gradient_NKHW: Tensor) -> Tensor:
    """Up-sampling takes twice the time backwards where its gradient lies in memory in another way than its output."""
    return gradient_NKHW.contiguous(memory_format=torch.channels_last)


def _missing(side: int, stride: int) -> int:
    return (side + stride - 1) // stride * stride - side
