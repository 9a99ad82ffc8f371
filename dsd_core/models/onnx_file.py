"""Read an ONNX file that nobody vouches for, and find in its graph what a teacher needs. Nothing of it is run here.

Graph and tensors are read into memory once, and what was checked is what runs. No library of operators is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper, shape_inference

from dsd_core.errors import WeightsError, unknown
from dsd_core.models.onnx_header import check_onnx_file, check_onnx_size

SHAPE_OF = "dsd.shape_of."
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_AFTER_HEAD = ("Identity", "Cast", "Resize", "Upsample", "Softmax", "LogSoftmax", "Transpose", "Slice", "Squeeze")


@dataclass(frozen=True)
class OnnxFile:
    """The model with all its tensors in memory, and the sha256 over the file and those beside it."""

    path: Path
    model: onnx.ModelProto
    digest: str

    @cached_property
    def tensors(self) -> dict[str, onnx.NodeProto]:
        """All that the graph computes, in order, and the node that computes it."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def activations(self) -> list[str]:
        """Tensors of floating-point numbers that the graph computes, in order."""
        graph = self.model.graph
        types = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
        return [name for name in self.tensors if types.get(name) in _FLOATS]

    def refuse_unknown(self, names: Sequence[str], *, field: str) -> None:
        """Raise SpecError for a name that is no tensor of the graph, with near ones."""
        for name in names:
            if name not in self.tensors:
                raise unknown(f"tensor in {self.path.name}", name, self.tensors, field=field)

    def with_outputs(self, names: Sequence[str], *, shapes: bool = False) -> bytes:
        """The model, serialised, with these inner tensors among its outputs, and with the shapes of all activations.

        The shape of NAME is the output SHAPE_OF + NAME.
        """
        model = _copy(self.model)
        present = {output.name for output in model.graph.output}
        infos = {info.name: info for info in model.graph.value_info}
        added = [name for name in dict.fromkeys(names) if name not in present]
        model.graph.output.extend(infos.get(name) or onnx.ValueInfoProto(name=name) for name in added)
        for name in self.activations if shapes else ():
            model.graph.node.append(helper.make_node("Shape", [name], [SHAPE_OF + name]))
            model.graph.output.append(helper.make_tensor_value_info(SHAPE_OF + name, onnx.TensorProto.INT64, None))
        return model.SerializeToString()

    def head(self, output: str) -> tuple[str, str] | None:
        """Input and output of the last convolution, where the output comes from one: the head's feature and logits."""
        node = self.tensors.get(output)
        while node is not None and node.op_type in _AFTER_HEAD:
            node = self.tensors.get(node.input[0])
        if node is None or node.op_type not in ("Conv", "ConvTranspose") or node.input[0] not in self.tensors:
            return None
        return node.input[0], node.output[0]

    def before_argmax(self, output: str) -> str | None:
        """What the graph takes the argmax of to get this output, if it does."""
        node = self.tensors.get(output)
        while node is not None and node.op_type in (*_AFTER_HEAD, "Unsqueeze"):
            node = self.tensors.get(node.input[0])
        return node.input[0] if node is not None and node.op_type == "ArgMax" else None


def read_onnx(path: Path, *, field: str = "/teacher/onnx") -> OnnxFile:
    """The model, checked and with inferred types. Raises WeightsError for a file that is damaged, too large, or names
    tensors in files outside its folder."""
    check_onnx_file(path, field=field)
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    try:
        model = onnx.load_model_from_string(content)
        beside = _files_beside(path, model, field)
        check_onnx_size(path, len(content) + sum(file.stat().st_size for file in beside), field=field)
        for file in beside:
            digest.update(file.read_bytes())
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        model = shape_inference.infer_shapes(model)
    except (
        DecodeError,
        onnx.checker.ValidationError,
        shape_inference.InferenceError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{path} is not a valid ONNX model: {reason[0]}",
            field=field,
            hint="Copy or export it again, with all files that hold its tensors.",
        ) from error
    return OnnxFile(path, model, digest.hexdigest())


def _files_beside(path: Path, model: onnx.ModelProto, field: str) -> list[Path]:
    """The files that hold the model's large tensors. Raises WeightsError for one that is not in the model's folder."""
    folder = path.parent.resolve()
    found = set()
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        file = (folder / location).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise WeightsError(
                f"{path} wants its tensor {tensor.name!r} from {location!r}, which is no file in its folder.",
                field=field,
                hint="Keep the files that hold its tensors beside it, under the names the exporter gave them.",
            )
        found.add(file)
    return sorted(found)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
