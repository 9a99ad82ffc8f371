"""What goes with a weights file, without torch: its network, its preprocessing, and whether it fits the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models.names import check_network
from dsd_core.models.sidecar import PREPROCESS, parse_preprocess, read_sidecar
from dsd_core.models.weights_header import outputs_in, shapes_in, with_options_of
from dsd_core.network_spec import NetworkSpec, Preprocess

_SAME_CLASSES = "Both must have the same classes in the same order; one more output, void, is left out."


def given_file(weights: Path | None, model: Path | None) -> Path:
    """The one that is given of a safetensors and an ONNX file. Raises SpecError, or WeightsError where it is not
    there."""
    if (path := weights or model) is None or (weights and model):
        raise SpecError("Give exactly one of --weights (safetensors) and --model (ONNX).")
    if not path.is_file():
        raise WeightsError(f"There is no file {path}.")
    return path


def describe_weights(
    weights: Path, network: NetworkSpec | None, preprocess: Preprocess | None, *, field: str = "/teacher"
) -> tuple[NetworkSpec, Preprocess]:
    """Network and preprocessing of a weights file: as given, else from the `.json` beside it. Raises SpecError,
    WeightsError."""
    if not weights.is_file():
        raise WeightsError(
            f"There is no weights file {weights}.",
            field=f"{field}/weights",
            hint="Check the path on the workers' machine.",
        )
    shapes_in(weights, field=f"{field}/weights")  # a pickle is refused before anybody is asked what is in it
    if network is None or preprocess is None:
        beside_network, beside_preprocess = read_sidecar(weights, field=field)
        network, preprocess = network or beside_network, preprocess or beside_preprocess
    missing = [name for name, value in (("network", network), ("preprocess", preprocess)) if value is None]
    if network is None or preprocess is None:
        raise SpecError(
            f"Nothing says the {' and '.join(missing)} of {weights}.",
            field=f"{field}/{missing[0]}",
            hint=f"Give {' and '.join(missing)}, or put them into a {weights.stem}.json beside the file.",
        )
    check_network(network, f"{field}/network")
    return with_options_of(weights, network, field=f"{field}/weights"), preprocess


def fitting_outputs(
    weights: Path, network: NetworkSpec, classes: Sequence[str], *, field: str = "/teacher/weights"
) -> int:
    """Outputs of the network in the file: one a class, or one more that is void. Raises SpecError, WeightsError.

    Where the config beside the file names its classes, they must be these in this order.
    """
    outputs = outputs_in(weights, network, field=field)
    if outputs not in (len(classes), len(classes) + 1):
        raise SpecError(
            f"{weights} has {outputs} classes, the dataset has {len(classes)}.", field=field, hint=_SAME_CLASSES
        )
    refuse_other_classes(weights, classes, field)
    return outputs


def describe_onnx(
    path: Path, preprocess: Preprocess | None, classes: Sequence[str], *, takes_bytes: bool
) -> Preprocess:
    """Preprocessing of an ONNX file: as given, else from the `.json` beside it; a graph that takes 8-bit pixels gets
    them as they are, in the order given. Raises SpecError, also where the config beside names other classes."""
    refuse_other_classes(path, classes, "/teacher/onnx")
    if takes_bytes:
        as_it_is = Preprocess(order=preprocess.order if preprocess else "RGB", mean=(0, 0, 0), std=(1, 1, 1))
        if preprocess not in (None, as_it_is):
            raise SpecError(
                f"{path} takes 8-bit pixels, so its preprocessing is inside the graph.",
                field="/teacher/preprocess",
                hint="Leave preprocess out, or give order alone with mean 0, 0, 0 and std 1, 1, 1.",
            )
        return as_it_is
    preprocess = preprocess or read_sidecar(path)[1]
    if preprocess is None:
        raise SpecError(
            f"Nothing says the preprocessing of {path}.",
            field="/teacher/preprocess",
            hint=f"Give preprocess, or put it into a {path.stem}.json beside the file.",
        )
    return preprocess


def refuse_other_classes(weights: Path, classes: Sequence[str], field: str) -> None:
    """Raise SpecError where the config beside the file names other classes than the dataset's."""
    named = _classes_beside(weights)
    if named and named[: len(classes)] != list(classes):
        raise SpecError(
            f"{weights} was trained for the classes {', '.join(named)}; the dataset has {', '.join(classes)}.",
            field=field,
            hint=_SAME_CLASSES,
        )


def _classes_beside(weights: Path) -> list[str] | None:
    config = weights.parent / "config.json"
    if not config.is_file() or weights.with_suffix(".json").is_file():
        return None
    said = json.loads(config.read_text(encoding="utf-8")).get("classes")
    return [str(name) for name in said] if isinstance(said, list) else None


def named_preprocess(text: str) -> Preprocess:
    """A preprocessing by its name, or from a JSON file that holds one (alone, or under `preprocess`). Raises
    SpecError."""
    path = Path(text)
    if text in PREPROCESS or not path.is_file():
        return parse_preprocess(text, field="--preprocess")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as JSON: {error}.") from error
    return parse_preprocess(said.get("preprocess", said) if isinstance(said, dict) else said, field="--preprocess")
