"""Losses as a job lists them: each by its fields, or all by the name of a preset. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field, TypeAdapter

from dsd_core.distill.loss import LossSpec
from dsd_core.distill.losses import LOSSES
from dsd_core.errors import unknown

if TYPE_CHECKING:
    Loss = LossSpec
else:
    Loss = Annotated[Union[tuple(LOSSES.values())], Field(discriminator="loss")]  # noqa: UP007 - the members are found
SYNONYMS = {"pixel_similarity": "psd", "category_similarity": "csd"}


_CE: dict[str, Any] = {"loss": "ce"}
_AT_HEAD = {"logits_at": "head"}
# The weights were chosen by `make compare`; docs/methods.md says how.
PRESETS: dict[str, list[dict[str, Any]]] = {
    "plain": [_CE],
    "dsd": [_CE, {"loss": "psd"}, {"loss": "csd", "weight": 10.0, **_AT_HEAD}],
    "dsd_kd": [
        _CE,
        {"loss": "psd", "weight": 3.0},
        {"loss": "csd", "weight": 30.0, **_AT_HEAD},
        {"loss": "kd", "weight": 3.0, **_AT_HEAD},
    ],
    "dsd_cwd": [
        _CE,
        {"loss": "psd", "weight": 0.3},
        {"loss": "csd", "weight": 3.0, **_AT_HEAD},
        {"loss": "cwd", **_AT_HEAD},
    ],
    "kd": [_CE, {"loss": "kd", **_AT_HEAD}],
    "at": [_CE, {"loss": "at", "weight": 10.0}],
    "fitnet": [_CE, {"loss": "fitnet"}],
    "skd": [_CE, {"loss": "skd_pairwise", "weight": 3.0, "pool": 2}],
    "ifvd": [_CE, {"loss": "ifvd", "weight": 30.0}],
    "cwd": [_CE, {"loss": "cwd", **_AT_HEAD}],
    "cirkd": [_CE, {"loss": "cirkd", "weight": 3.0}],
    "dist": [_CE, {"loss": "dist", "weight": 0.3, **_AT_HEAD}],
    # The constants of the public re-implementation (winycg/CIRKD, losses/dsd.py); docs/methods.md has the rest.
    "cirkd_dsd": [
        _CE,
        {"loss": "psd", "weight": 1000.0, "pairs": "all", "reduction": "mean", "layers": "head"},
        {"loss": "csd", "weight": 10.0, "tau": 4.0, "softmax": "spatial", "normalize": False, "pool": 2, **_AT_HEAD},
    ],
}


DEFAULT_PRESET = "cwd"
"""Of a distill job: the preset with the best mean mIoU in the comparison on CamVid."""


def _expand_preset(value: Any) -> Any:
    if not isinstance(value, str):
        return [_by_its_name(loss) for loss in value] if isinstance(value, list | tuple) else value
    if value not in PRESETS:
        raise ValueError(str(unknown("loss preset", value, PRESETS)))
    return PRESETS[value]


def _by_its_name(loss: Any) -> Any:
    name = loss.get("loss") if isinstance(loss, dict) else None
    return {**loss, "loss": SYNONYMS[name]} if isinstance(name, str) and name in SYNONYMS else loss


Losses = Annotated[tuple[Loss, ...], BeforeValidator(_expand_preset, json_schema_input_type=tuple[Loss, ...] | str)]
_losses: TypeAdapter[tuple[Loss, ...]] = TypeAdapter(Losses)


def preset_losses(name: str) -> tuple[Loss, ...]:
    """The losses of a preset. Raises pydantic.ValidationError, a ValueError, for a name that is none."""
    return _losses.validate_python(name)
