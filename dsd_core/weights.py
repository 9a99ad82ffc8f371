"""What goes with a weights file, without torch: its network, its preprocessing, and whether it fits the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def fitting_outputs(
    weights: Path, network: NetworkSpec, classes: Sequence[str], *, field: str = "/teacher/weights"
) -> int:
    """Outputs of the network in the file: one a class, or one more that is void. Raises SpecError, WeightsError.

    Where the config beside the file names its classes, they must be these in this order.
    """
    outputs = outputs_in(weights, network, field=field)
    hint = "Both must have the same classes in the same order; one more output, void, is left out."
    if outputs not in (len(classes), len(classes) + 1):
        raise SpecError(f"{weights} has {outputs} classes, the dataset has {len(classes)}.", field=field, hint=hint)
    named = _classes_beside(weights)
    if named and named[: len(classes)] != list(classes):
        raise SpecError(
            f"{weights} was trained for the classes {', '.join(named)}; the dataset has {', '.join(classes)}.",
            field=field,
            hint=hint,
        )
    return outputs


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
