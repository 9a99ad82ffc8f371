"""What goes with a weights file, without torch: its network, its preprocessing, and whether it fits the classes."""

from __future__ import annotations

import json
from pathlib import Path

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models.names import check_network
from dsd_core.models.sidecar import PREPROCESS, parse_preprocess, read_sidecar
from dsd_core.models.weights_header import outputs_in, with_options_of
from dsd_core.spec import NetworkSpec, Preprocess


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


def fitting_outputs(weights: Path, network: NetworkSpec, classes: int, *, field: str = "/teacher/weights") -> int:
    """Outputs of the network in the file: as many as classes, or one more that is void. Raises SpecError,
    WeightsError."""
    outputs = outputs_in(weights, network, field=field)
    if outputs not in (classes, classes + 1):
        raise SpecError(
            f"{weights} has {outputs} classes, the dataset has {classes}.",
            field=field,
            hint="Both must have the same classes in the same order; one more output, void, is left out.",
        )
    return outputs


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
