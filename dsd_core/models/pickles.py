"""Turn a PyTorch checkpoint (`.pt`, `.pth`) into safetensors, in a process of its own that may do little. Torch-free.

Nothing of this project reads a pickle anywhere else: not the training process, not the API.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dsd_core.errors import WeightsError
from dsd_core.models.weights_header import shapes_in

TIMEOUT_S = 600


def convert(source: Path, target: Path) -> dict[str, tuple[int, ...]]:
    """Write the tensors of `source` to `target` and return their names and shapes.

    The file is read by `torch.load(weights_only=True)` in a child with limits on memory, time, written bytes and
    processes, without network where the system allows that; what it wrote is checked here before it gets its name.
    Raises WeightsError.
    """
    if target.suffix != ".safetensors" or target.exists():
        what = "exists already" if target.exists() else "is no name of a safetensors file"
        raise WeightsError(f"{target} {what}.", hint="Name a new file that ends in .safetensors.")
    if not source.is_file():
        raise WeightsError(f"There is no file {source}.", hint="Check the path.")
    if source.suffix.lower() == ".pt2":
        raise WeightsError(
            f"{source} is an exported program, whose graph is code.",
            hint="Load it where it was made and write its state_dict() with safetensors.torch.save_file.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
        written = Path(folder) / "weights.safetensors"
        _read_in_child(source.resolve(), written.resolve())
        try:
            shapes = shapes_in(written, field="")
        except WeightsError as error:
            raise WeightsError(f"{source} was not converted: {error.message}", hint=error.hint) from error
        os.replace(written, target)
    return shapes


def _read_in_child(source: Path, written: Path) -> None:
    command = [sys.executable, "-P", "-m", "dsd_core.models.unpickle", str(source), str(written)]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Started in this folder, so that relative entries of PYTHONPATH mean the same; the child leaves it at once.
    environment = kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(source, f"reading it took more than {TIMEOUT_S} s") from error
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        raise _refused(source, lines[-1][:500] if lines else f"the reading process ended with {child.returncode}")


def _refused(source: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{source} cannot be converted: {reason}.",
        hint="Load it where it was made and write model.state_dict() with safetensors.torch.save_file.",
    )
