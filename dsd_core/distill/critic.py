"""The critic of holistic distillation: class maps and image to one score, with self-attention (Zhang et al., SAGAN)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (64, 128, 256)


class Critic(nn.Module):
    """Strided spectrally normalised convolutions, self-attention, one more convolution, and the mean over positions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        channels = [classes + 3, *WIDTHS]
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 3, stride=2, padding=1)) for before, after in pairwise(channels)
        )
        self.attention = SelfAttention(WIDTHS[-1])
        self.score = spectral_norm(nn.Conv2d(WIDTHS[-1], 1, 1))

    def forward(self, probabilities_NKHW: Tensor, image_N3HW: Tensor) -> Tensor:
        """Score of each image, N, from maps of any size."""
        x = torch.cat([probabilities_NKHW, image_N3HW], dim=1)
        for down in self.down:
            x = F.leaky_relu(down(x), 0.1)
        return self.score(self.attention(x)).mean(dim=(1, 2, 3))


class SelfAttention(nn.Module):
    """Each position adds a weighted sum of all positions' values; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = spectral_norm(nn.Conv2d(channels, channels // 8, 1))
        self.key = spectral_norm(nn.Conv2d(channels, channels // 8, 1))
        self.value = spectral_norm(nn.Conv2d(channels, channels, 1))
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        query, key, value = (part(x_NCHW).flatten(2) for part in (self.query, self.key, self.value))
        weights_NPP = (query.transpose(1, 2) @ key).softmax(dim=-1)
        return x_NCHW + self.share * (value @ weights_NPP.transpose(1, 2)).view_as(x_NCHW)
