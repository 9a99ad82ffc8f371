"""The auxiliary head: a classifier on an earlier stage that helps training and is not part of the deployed network.

Such a head is a submodule of the network, so that weights files hold it; who wants its logits taps it.
"""

from __future__ import annotations

from torch import nn


def is_wanted(head: nn.Module) -> bool:
    """Whether the head runs in this pass: in training, or when a tap listens to it. Plain inference leaves it out."""
    return head.training or any(part._forward_hooks for part in head.modules())
