"""Weights of an ONNX graph kept in half precision: half the bytes on disk, the same operators in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEAST_VALUES = 256  # smaller tensors, such as means and biases, stay as they are
LARGEST = float(np.finfo(np.float16).max)


def halve_weights(path: Path) -> None:
    """Rewrite the graph with its large float32 weights as float16, each behind a Cast to float32.

    Runtimes fold the casts when they load the graph, so it computes as before with rounded weights. A tensor with a
    value beyond float16 stays as it is.
    """
    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LEAST_VALUES or np.abs(values).max() > LARGEST:
            continue
        half = f"{tensor.name}.float16"
        casts.append(helper.make_node("Cast", [half], [tensor.name], to=TensorProto.FLOAT))
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), half))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)
