"""The job whose weights are known: a network of a few thousand parameters on generated scenes, some seconds long."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dsd_core.spec import JobSpec
from tests.core.small import small_spec
from tests.faults.oracles import digest


@dataclass(frozen=True)
class Golden:
    """A spec, and the SHA-256 of the weights its uninterrupted run ends with."""

    spec: JobSpec
    digest: str


def train(folder: Path) -> Golden:
    """Run the job once, by itself."""
    spec = small_spec(None, train__epochs=4, train__batch=8, train__checkpoint_every_s=0.3)
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "dsd_core", "run", str(folder / "spec.json"), "--out", str(folder / "run")]
    subprocess.run(command, check=True, capture_output=True)
    return Golden(spec, digest(folder / "run" / "student" / "model.safetensors"))
