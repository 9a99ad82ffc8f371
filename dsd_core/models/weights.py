"""Load a safetensors file into a network: every tensor or none."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dsd_core.errors import WeightsError
from dsd_core.models.weights_header import shapes_in

LISTED = 10


def load_weights(module: nn.Module, path: Path, *, field: str) -> None:
    """Fill the module from the file.

    Raises WeightsError that lists the first 10 tensors that do not fit; nothing is loaded then.
    """
    wanted = module.state_dict()
    problems = _differences(
        {name: tuple(tensor.shape) for name, tensor in wanted.items()}, shapes_in(path, field=field)
    )
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise WeightsError(
            f"{path} does not fit the network, {len(problems)} tensors differ: {'; '.join(problems[:LISTED])}{more}.",
            field=field,
            hint="Name the network, encoder, options and number of classes that the file was made with.",
        )
    state = _read(path, field)
    module.load_state_dict(state, strict=True)


def _read(path: Path, field: str) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}", field=field, hint="Copy or export the file again."
        ) from error
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f"{path} holds NaN or infinity in {len(broken)} tensors: {', '.join(broken[:LISTED])}.",
            field=field,
            hint="The training that wrote it diverged; take an earlier file.",
        )
    return state


def _differences(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    shapes = [
        f"{name} is {found[name]} in the file and {shape} in the network"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    # Older files lack this counter, which nothing here reads; torch fills it in.
    needed = [name for name in wanted if not name.endswith(".num_batches_tracked")]
    missing = [f"{name} is missing in the file" for name in needed if name not in found]
    unexpected = [f"{name} is not in the network" for name in found if name not in wanted]
    return [*shapes, *missing, *unexpected]
