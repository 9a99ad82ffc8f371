"""Lists of losses that make no sense are refused, however wrong a value is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from dsd_core.distill.losses import LOSSES
from dsd_core.errors import SpecError
from dsd_core.spec import JobSpec, parse_spec

JOB: dict[str, Any] = {
    "name": "a",
    "dataset": {"name": "streets"},
    "student": {"network": {"name": "espnet", "options": {"p": 2}}},
    "teacher": {"model": "t"},
    "losses": [{"loss": name} for name in LOSSES],
}
AUTO = {"loss": "ce", "weight": "auto"}


@pytest.mark.parametrize(
    ("losses", "baseline"),
    [
        ([AUTO], False),
        ([AUTO, {"loss": "kd", "weight": 0}], False),
        ([AUTO, {"loss": "kd"}], True),
        ([AUTO, {"loss": "dice", "weight": "auto"}, {"loss": "kd"}], True),
    ],
)
def test_a_weight_that_would_follow_nothing_is_refused(losses: list[dict[str, Any]], baseline: bool) -> None:
    with pytest.raises(SpecError, match="give one a number above 0"):
        parse_spec(JOB | {"losses": losses, "baseline": baseline})


def test_a_weight_may_follow_the_teachers_term_where_no_baseline_is_asked_for() -> None:
    assert parse_spec(JOB | {"losses": [AUTO, {"loss": "kd"}]}).losses[0].weight == "auto"


def test_a_batch_in_parts_is_refused_where_only_the_teacher_tells_what_counts() -> None:
    taught = [{"loss": "ce", "labels": "teacher", "confidence": 0.5}]
    assert parse_spec(JOB | {"losses": taught}).losses[0].counts_by_teacher
    with pytest.raises(SpecError, match="`confidence`"):
        parse_spec(JOB | {"losses": taught, "train": {"accumulate": 2}})


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"losses": [{"loss": "ce", "weight": "1"}, {"loss": "at", "on": "tap"}]}, "/losses/1/on", "feature, taps"),
        ({"losses": [{"loss": "skd_pairwise", "pool": "hal"}]}, "/losses/0/pool", "`half`"),
        ({"student": {"network": {"name": "espnet", "options": {"p": {}}}}}, "/student/network/options/p", "a number"),
        ({"kind": "destill"}, "/kind", "Did you mean distill"),
        ({"train": {"batch": 4, "accumulate": 5}}, "/train/accumulate", "give at most 4"),
    ],
)
def test_a_wrong_value_is_answered_once_with_what_is_allowed(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(JOB | change)
    assert caught.value.field == field
    assert says in caught.value.message and ";" not in caught.value.message


def test_any_value_at_any_field_is_taken_or_refused_as_a_wrong_specification() -> None:
    whole = JobSpec.model_validate(JOB).model_dump(mode="json")
    for path in _paths(whole):
        for value in (None, 3, True, "x", [], ["a"], {}, {"a": 1}, [[1]], 1e400, -1, 10**400):
            changed = copy.deepcopy(whole)
            _place(changed, path[:-1])[path[-1]] = value
            try:
                parse_spec(changed)
            except SpecError as error:
                assert error.message


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _place(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
