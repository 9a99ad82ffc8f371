"""Open an ONNX graph in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsd_core.errors import WeightsError

if TYPE_CHECKING:
    import onnxruntime

ON_CUDA = "CUDAExecutionProvider"
ON_CPU = "CPUExecutionProvider"


def onnx_session(
    path: Path, *, serialized: bytes | None = None, cuda: bool = False, field: str | None = None
) -> onnxruntime.InferenceSession:
    """The file, or `serialized` in its place, ready to run with as many CPU threads as torch has.

    With `cuda`, on the GPU where onnxruntime was built for one. Raises WeightsError with onnxruntime's reason, such as
    an operator that it does not have.
    """
    import onnxruntime  # here, for its import starts a thread, and `dsd_core.warm` may fork only without one

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = [ON_CUDA, ON_CPU] if cuda and ON_CUDA in onnxruntime.get_available_providers() else [ON_CPU]
    try:
        return onnxruntime.InferenceSession(serialized or str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        raise WeightsError(
            f"{path} is not an ONNX model that onnxruntime can run: {error}",
            field=field,
            hint="Export it again with the standard operators and an opset that this onnxruntime knows.",
        ) from error
