"""Networks that are run from a file."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from dsd_core.errors import SpecError
from dsd_core.predict import open_predictor


def test_a_graph_of_one_size_says_so_where_it_is_given_another(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["logits"], to=TensorProto.FLOAT),
        ],
        "colours as classes",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 12, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 8, 12])],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    logits = open_predictor(None, None, None, path, threads=1).logits
    assert logits(torch.full((1, 3, 8, 12), 7, dtype=torch.uint8)).shape == (1, 3, 8, 12)
    with pytest.raises(SpecError, match="cannot take images of 16x24") as caught:
        logits(torch.zeros(1, 3, 16, 24, dtype=torch.uint8))
    assert caught.value.hint is not None and "fixed_size" in caught.value.hint
