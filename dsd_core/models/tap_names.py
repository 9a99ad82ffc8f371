"""Which modules of a network are compared unless a job names others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TapNames:
    """Module names of one network, as `Taps` takes them; each network of ours holds its own as `tap_names`."""

    stages: tuple[str, ...]
    """One per stage, shallow to deep."""
    head: str
    """The feature that the last classifier takes, before dropout."""
    logits: str
    """The logits at the head's own grid, before they are brought to the size of the image."""
    auxiliary: str | None = None
    """The auxiliary logits at their own grid, where the network has an auxiliary head."""
