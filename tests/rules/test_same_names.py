"""Names that stand in two places are the same in both."""

from __future__ import annotations

from typing import get_args

from dsd_core import errors
from dsd_core.data import DATASETS
from dsd_core.distill.presets import PRESETS
from dsd_core.models.names import OPTIONS, STRIDES
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS
from dsd_core.spec import DatasetSpec, parse_spec
from jobs.status import MOVES, OUTCOMES, TERMINAL, Reason


def test_the_spec_names_the_datasets_there_are() -> None:
    assert set(get_args(DatasetSpec.model_fields["name"].annotation)) == set(DATASETS)


def test_every_network_has_its_options() -> None:
    assert set(OPTIONS) == set(STRIDES) == {*OWN_NETWORKS, *TORCHVISION_NETWORKS, *DECODERS}


def test_every_preset_parses() -> None:
    for preset in PRESETS:
        spec = {"name": "x", "dataset": {"name": "streets"}, "student": {"network": "espnet"}, "losses": preset}
        spec |= {"kind": "train"} if preset == "plain" else {"teacher": {"model": "t"}}
        assert parse_spec(spec).losses


def test_every_error_of_a_run_is_a_reason_of_a_job() -> None:
    codes = {
        kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DsdError)
    }
    assert codes - {errors.Interrupted.code} <= set(Reason)


def test_every_reason_has_an_outcome_and_no_move_leaves_an_end() -> None:
    assert set(OUTCOMES) == set(Reason)
    assert not [move for move in MOVES if move[0] in TERMINAL]
