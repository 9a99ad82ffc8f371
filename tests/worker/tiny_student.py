"""A student as the core exports it, written by hand: class 1 where red exceeds 100, class 2 where green does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_student(folder: Path) -> None:
    """model.onnx, model.safetensors, config.json, README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(), folder / "model.onnx")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "config.json").write_text(json.dumps({"classes": ["void", "red", "green"]}))
    (folder / "README.md").write_text("# tiny student\n\nThree classes by colour.\n")


def _graph() -> onnx.ModelProto:
    """logits = W image + b as a 1x1 convolution: 0, red - 100, green - 100."""
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[1, 0] = weight[2, 1] = 1.0
    bias = np.array([0.0, -100.0, -100.0], np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
