"""Fixtures every level of tests shares. Folders say what a test needs: core nothing, jobs databases, system all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.servers", "tests.faults.report"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Two cores are shared by servers and training processes; more threads only make timings uneven.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _shared(part: str) -> Path:
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder of the team's shared data."""
    return _shared("data/CamVid")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The team's shared weights files."""
    return _shared("weights")
