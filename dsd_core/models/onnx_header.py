"""What can be known of an ONNX file without reading its graph. Free of torch, onnx and onnxruntime."""

from __future__ import annotations

from pathlib import Path

from dsd_core.errors import WeightsError

SIZE_LIMIT_BYTES = 2_000_000_000  # of the graph with its tensors: protobuf's own limit for one message
_FIELD_IR_VERSION = b"\x08"  # the first field of a model as every exporter writes it


def check_onnx_file(path: Path, *, field: str = "/teacher/onnx") -> None:
    """Raise WeightsError where the file is missing, too large or certainly no ONNX model."""
    hint = "Give a .onnx file on the workers' machine."
    if not path.is_file():
        raise WeightsError(f"There is no ONNX file {path}.", field=field, hint=hint)
    try:
        with open(path, "rb") as file:
            start = file.read(1)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", field=field, hint=hint) from error
    if start != _FIELD_IR_VERSION:
        raise WeightsError(f"{path} is no ONNX model: it does not start as one.", field=field, hint=hint)
    check_onnx_size(path, path.stat().st_size, field=field)


def check_onnx_size(path: Path, size: int, *, field: str) -> None:
    """Raise WeightsError where graph and tensors together are too large."""
    if size > SIZE_LIMIT_BYTES:
        raise WeightsError(
            f"{path} has {size} bytes with the tensors beside it; at most {SIZE_LIMIT_BYTES} are read.",
            field=field,
            hint="Export the network in float16, or a smaller teacher.",
        )
