"""What the `.json` beside a weights file says: its network and its preprocessing. Torch-free.

Two forms are read: the `config.json` of an exported student, and prose such as
`"network": "segmentation_models_pytorch.FPN('resnet18', classes=11)"` (or a call of torchvision's builder) with
`"preprocess": "RGB 0..255, (x - 127) / 128"`. Text is parsed as literals and arithmetic, never evaluated as code.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_core.errors import SpecError
from dsd_core.field_problems import complaints
from dsd_core.models.affine import affine_in_x
from dsd_core.network_spec import DECODERS, TORCHVISION_NETWORKS, NetworkSpec, Preprocess, network_spec

PREPROCESS: dict[str, Preprocess] = {
    "imagenet": Preprocess(),
    "zero_one": Preprocess(mean=(0, 0, 0), std=(255, 255, 255)),
    "espnet_camvid": Preprocess(
        order="BGR", mean=(110.331, 108.409, 105.033), std=(72.126 * 255, 72.691 * 255, 69.904 * 255)
    ),
    "espnet_cityscapes": Preprocess(
        order="BGR", mean=(72.3923, 82.9089, 73.1584), std=(45.3192 * 255, 46.1529 * 255, 44.9148 * 255)
    ),
    "enet_camvid": Preprocess(mean=(0, 0, 0), std=(255, 255, 255)),
    "efficientnet_lite": Preprocess(mean=(127, 127, 127), std=(128, 128, 128)),
    "fpn_lite0_camvid": Preprocess(mean=(104.55, 107.1, 109.65), std=(76.5, 76.5, 76.5)),
}
SIZE_LIMIT_BYTES = 1_000_000
_SAID_ELSEWHERE = ("classes", "in_channels", "encoder_weights", "activation", "aux_params", "upsampling")


def read_sidecar(weights_path: Path, *, field: str = "/teacher") -> tuple[NetworkSpec | None, Preprocess | None]:
    """Network and preprocessing from NAME.json beside NAME.safetensors, else from config.json in its folder.

    None for what is not said. Raises SpecError where something is said that cannot be understood.
    """
    for path in (weights_path.with_suffix(".json"), weights_path.parent / "config.json"):
        if path.is_file():
            return _read(path, field)
    return None, None


def _read(path: Path, field: str) -> tuple[NetworkSpec | None, Preprocess | None]:
    try:
        if path.stat().st_size > SIZE_LIMIT_BYTES:
            raise ValueError(f"it is larger than {SIZE_LIMIT_BYTES} bytes")
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read as JSON: {error}.", field=field) from error
    if not isinstance(said, dict):
        raise SpecError(f"{path} must hold an object with `network` and `preprocess`.", field=field)
    network, preprocess = said.get("network"), said.get("preprocess")
    try:
        return (
            None if network is None else parse_network(network, field=f"{field}/network"),
            None if preprocess is None else parse_preprocess(preprocess, field=f"{field}/preprocess"),
        )
    except SpecError as error:
        raise SpecError(f"{path}: {error.message}", field=error.field, hint=error.hint) from error


def parse_network(said: Any, *, field: str = "/teacher/network") -> NetworkSpec:
    """A network from a NetworkSpec's fields, its short form, or a constructor call of segmentation-models-pytorch or
    torchvision."""
    try:
        if isinstance(said, str) and "(" in said:
            said = _constructor_call(said)
        return network_spec(said)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = complaints(error) if isinstance(error, ValidationError) else f"{error}."
        hint = "Give `network` in the job." if field.startswith("/") else None
        raise SpecError(f"{str(said)[:200]!r} does not name a network: {reason}", field=field, hint=hint) from error


def network_from_text(text: str, *, field: str) -> NetworkSpec:
    """A network as the command line names it: what `parse_network` takes, its fields as JSON. Raises SpecError."""
    try:
        return parse_network(json.loads(text) if text.startswith("{") else text, field=field)
    except json.JSONDecodeError as error:
        raise SpecError(f"{text!r} is not JSON: {error}.", field=field) from error


def parse_preprocess(said: Any, *, field: str = "/teacher/preprocess") -> Preprocess:
    """Preprocessing from Preprocess' fields, a name of PREPROCESS, or text like `BGR 0..1, (x - 0.4) / [1, 1, 2]`.

    The text gives the channels' order, the range of x, and an affine formula in x; numbers in brackets are per channel.
    """
    try:
        if isinstance(said, str):
            return PREPROCESS[said] if said in PREPROCESS else _from_formula(said)
        return Preprocess.model_validate(said)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SpecError(
            f"{str(said)[:200]!r} is no preprocessing: {reason}.",
            field=field,
            hint=f"Write one of {', '.join(PREPROCESS)}, or such as 'RGB 0..255, (x - [124, 116, 104]) / 58'.",
        ) from error


def _constructor_call(text: str) -> dict[str, Any]:
    """NetworkSpec's fields from the text of a call; its arguments are literals."""
    call = ast.parse(text[:2000].strip(), mode="eval").body
    if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("it is not a call with plain arguments")
    class_name = ast.unparse(call.func).rpartition(".")[2]
    if class_name in TORCHVISION_NETWORKS:
        return _torchvision_call(class_name, call)
    names = {class_name: name for name, class_name in DECODERS.items()}
    if class_name not in names:
        raise ValueError(f"{class_name!r} is none of {', '.join([*names, *TORCHVISION_NETWORKS])}")
    arguments = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
    if call.args:
        arguments["encoder_name"] = ast.literal_eval(call.args[0])
    if len(call.args) > 1:
        raise ValueError("arguments after the encoder must be named")
    if arguments.get("in_channels", 3) != 3 or arguments.get("activation") or arguments.get("aux_params"):
        raise ValueError("only networks with three input channels, no activation and no classifier are known")
    encoder = arguments.pop("encoder_name", "resnet34")
    options = {name: _as_option(value) for name, value in arguments.items() if name not in _SAID_ELSEWHERE}
    return {"name": names[class_name], "encoder": encoder, "options": options}


def _torchvision_call(name: str, call: ast.Call) -> dict[str, Any]:
    arguments = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
    unknown_ones = set(arguments) - {"num_classes", "aux_loss", "weights", "weights_backbone"}
    if call.args or unknown_ones:
        raise ValueError("only num_classes, aux_loss and weights, by name, are known for networks of torchvision")
    return {"name": name, "options": {key: value for key, value in arguments.items() if key == "aux_loss" and value}}


def _as_option(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_TEXT = re.compile(r"^\s*(?P<order>RGB|BGR)\s+0\s*\.\.\s*(?P<top>255|1)\s*,(?P<formula>.+)$", re.DOTALL)


def _from_formula(text: str) -> Preprocess:
    found = _TEXT.match(text)
    if not found or len(text) > 500:
        raise ValueError("it must read 'RGB 0..255, FORMULA', with RGB or BGR, 0..255 or 0..1, and x in the formula")
    slope, offset = affine_in_x(found["formula"])
    if not all(value > 0 for value in slope):
        raise ValueError("the formula must grow with x in every channel")
    top = 255 / float(found["top"])
    mean = [-b / a * top for a, b in zip(slope, offset, strict=True)]
    std = [top / a for a in slope]
    return Preprocess.model_validate({"order": found["order"], "mean": mean, "std": std})
