"""What a safetensors file says about itself in its header, read without torch and without the tensors.

The file starts with the header's length in 8 little-endian bytes, then the header: JSON of names, dtypes and shapes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsd_core.errors import WeightsError
from dsd_core.network_spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec

HEADER_LIMIT_BYTES = 1_000_000  # some 8,000 tensors; the largest networks of the zoos have 2,500
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
# Half precision is widened on loading. One byte a value means quantised weights, which need scales to be understood.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "BOOL": 1}
_QUANTISED = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "I4", "U4")
_WRAPPERS = ("module.", "model.", "network.", "state_dict.", "_orig_mod.")
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
    """Name and shape of every tensor in the file, without the prefix that wrappers put before every name.

    Raises WeightsError where the file is missing, damaged, cut short, a pickle, or holds quantised weights.
    """
    header = _read_header(path, field)
    prefix = wrapper_prefix(header)
    return {name.removeprefix(prefix): tuple(entry["shape"]) for name, entry in header.items()}


def wrapper_prefix(names: Iterable[str]) -> str:
    """What DataParallel, torch.compile, trainers and checkpoints put before every name, such as `module.model.`."""
    names, prefix = list(names), ""
    while found := next((w for w in _WRAPPERS if names and all(n.startswith(prefix + w) for n in names)), None):
        prefix += found
    return prefix


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
            _refuse_pickle(path, start, field)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= size - 8:
                raise _damaged(path, "it does not start with a safetensors header", field)
            if length > HEADER_LIMIT_BYTES:
                raise _damaged(path, f"its header has {length} bytes, more than {HEADER_LIMIT_BYTES}", field)
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise WeightsError(
            f"There is no weights file {path}.", field=field, hint="Check the path on the workers' machine."
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror}.", field=field, hint="Name a file that the workers may read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON", field) from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object", field)
    header.pop("__metadata__", None)
    _check_tensors(path, header, size - 8 - length, field)
    return header


def _refuse_pickle(path: Path, start: bytes, field: str) -> None:
    """Raise WeightsError for what torch.save, torch.jit.save, torch.export.save and pickle write."""
    if path.suffix.lower() == ".pt2":
        raise WeightsError(
            f"{path} is an exported program, not weights.",
            field=field,
            hint="Load it where it was made and write its state_dict() with safetensors.torch.save_file, or export it "
            "to ONNX and name that as /teacher/onnx.",
        )
    if path.suffix.lower() in PICKLES or start[:4] == b"PK\3\4" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"):
        raise WeightsError(
            f"{path} is a pickle, which can run code when it is read; jobs take safetensors only.",
            field=field,
            hint=f"Convert it once: dsd weights convert {path.name} {path.stem}.converted.safetensors",
        )


def _check_tensors(path: Path, header: dict[str, Any], data_bytes: int, field: str) -> None:
    """Raise WeightsError unless the tensors have their sizes and fill the data from end to end, one after the other."""
    try:
        spans = sorted((*_span(entry), name) for name, entry in header.items())
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(path, "its header lists no dtypes, shapes and offsets", field) from error
    quantised = [name for name, entry in header.items() if entry["dtype"] in _QUANTISED]
    if quantised:
        raise WeightsError(
            f"{path} holds {len(quantised)} tensors of 8 bits or fewer, such as {quantised[0]!r} "
            f"({header[quantised[0]]['dtype']}).",
            field=field,
            hint="Quantised weights are not read; save the network in float32, float16 or bfloat16.",
        )
    position = 0
    for first, last, needed, name in spans:
        if first != position or last < first:
            raise _damaged(path, f"tensor {name!r} overlaps another or leaves a gap before it", field)
        if needed is not None and last - first != needed:
            raise _damaged(path, f"tensor {name!r} has {last - first} bytes, its shape needs {needed}", field)
        position = last
    if position != data_bytes:
        raise _damaged(path, f"it has {data_bytes} bytes of tensors, its header promises {position}", field)


def _span(entry: dict[str, Any]) -> tuple[int, int, int | None]:
    """First byte, byte after the last, and how many the shape needs (None for quantised ones). Raises ValueError."""
    first, last = entry["data_offsets"]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (first, last, *entry["shape"])):
        raise ValueError("offsets and sides are whole numbers")
    if entry["dtype"] in _QUANTISED:
        return first, last, None
    return first, last, math.prod(entry["shape"]) * _BYTES[entry["dtype"]]


def _damaged(path: Path, reason: str, field: str) -> WeightsError:
    return WeightsError(
        f"{path} is not a whole safetensors file: {reason}.", field=field, hint="Copy or export the file again."
    )
