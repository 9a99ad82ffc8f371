"""What a safetensors file says about itself in its header, read without torch and without the tensors.

The file starts with the header's length in 8 little-endian bytes, then the header: JSON of names, dtypes and shapes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from dsd_core.errors import WeightsError
from dsd_core.spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec

HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
# Tensor and dimension that has the outputs; of a transposed convolution it is dimension 1.
_OUTPUTS_AT = (
    dict.fromkeys(DECODERS, ("segmentation_head.0.weight", 0))
    | dict.fromkeys(TORCHVISION_NETWORKS, ("classifier.4.weight", 0))
    | dict.fromkeys(("pspnet_r101", "pspnet_r18", "pspnet_r18_half"), ("classifier.weight", 0))
    | {
        "espnet": ("classifier.weight", 1),
        "espnet_c": ("encoder.classifier.conv.weight", 0),
        "enet": ("transposed_conv.weight", 1),
        "lraspp_mobilenet_v3_large": ("classifier.low_classifier.weight", 0),
    }
)


def shapes_in(path: Path, *, field: str = "/teacher/weights") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the file. Raises WeightsError where it is missing, damaged or cut short."""
    header = _read_header(path, field)
    try:
        return {name: tuple(int(side) for side in entry["shape"]) for name, entry in header.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(path, "its header lists no shapes", field) from error


def outputs_in(path: Path, network: NetworkSpec, *, field: str = "/teacher/weights") -> int:
    """Class outputs of the network whose weights the file holds. Raises WeightsError where it holds another network."""
    name, dimension = _OUTPUTS_AT[network.name]
    shapes = shapes_in(path, field=field)
    if name not in shapes or len(shapes[name]) != 4:
        raise WeightsError(
            f"{path} holds no weights of {network}: there is no 4-dimensional tensor {name!r} in it.",
            field=field,
            hint=f"It has {', '.join(list(shapes)[:3])} … ({len(shapes)} tensors); name the network it was made for.",
        )
    return shapes[name][dimension]


def with_options_of(path: Path, network: NetworkSpec, *, field: str = "/teacher/weights") -> NetworkSpec:
    """The network with options that are not given but show in the file.

    These are `p`, `q` and `image_in_skip` of ESPNet, `p` and `q` of ESPNet-C, `aux_loss` of torchvision's networks.
    """
    if network.name in ("espnet", "espnet_c"):
        found = _espnet_options(shapes_in(path, field=field))
    elif network.name in TORCHVISION_NETWORKS and not network.name.startswith("lraspp"):
        found = {"aux_loss": any(name.startswith("aux_classifier.") for name in shapes_in(path, field=field))}
    else:
        return network
    return network.model_copy(update={"options": {**found, **network.options}})


def _espnet_options(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    blocks = {"p": _items(shapes, "encoder.level2"), "q": _items(shapes, "encoder.level3")}
    found: dict[str, Any] = {name: count for name, count in blocks.items() if count}
    channels, outputs = shapes.get("conv.conv.weight"), shapes.get("classifier.weight")
    if channels and outputs and len(channels) == len(outputs) == 4:
        found["image_in_skip"] = channels[1] - outputs[0] == 19
    return found


def _items(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    numbers = {found[1] for name in shapes if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return len(numbers)


def _read_header(path: Path, field: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
                raise _damaged(path, "it does not start with a safetensors header", field)
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weights file {path}.", field=field) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", field=field) from error
    except ValueError as error:
        raise _damaged(path, "its header is not JSON", field) from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object", field)
    header.pop("__metadata__", None)
    _check_length(path, header, size - 8 - length, field)
    return header


def _check_length(path: Path, header: dict[str, Any], data_bytes: int, field: str) -> None:
    try:
        needed = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise _damaged(path, "its header lists no offsets", field) from error
    if needed != data_bytes:
        raise _damaged(path, f"it has {data_bytes} bytes of tensors, its header promises {needed}", field)


def _damaged(path: Path, reason: str, field: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a whole safetensors file: {reason}.", field=field, hint="Copy or export the file again."
    )
