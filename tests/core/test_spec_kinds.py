"""What each kind of job takes and refuses, and which jobs it waits for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from api.main import create_app
from dsd_core.errors import SpecError
from dsd_core.network_spec import Preprocess
from dsd_core.spec import JobSpec, Training, parse_spec
from jobs.settings import Settings

TRAIN: dict[str, Any] = {
    "kind": "train",
    "name": "a",
    "dataset": {"name": "streets"},
    "student": {"network": "fpn:resnet18"},
}
DISTILL = TRAIN | {"kind": "distill", "teacher": {"job": "t1"}}
SCORE: dict[str, Any] = {"kind": "evaluate", "name": "a", "dataset": {"name": "streets"}, "student": {"job": "s1"}}


@pytest.mark.parametrize("kind", ["evaluate", "export"])
@pytest.mark.parametrize("source", [{"job": "s1"}, {"model": "m@best"}, {"weights": "/data/s.safetensors"}])
def test_a_trained_student_is_scored_and_exported_from_any_one_source(kind: str, source: dict[str, str]) -> None:
    spec = parse_spec(SCORE | {"kind": kind, "student": source})
    assert (spec.losses, spec.train, spec.student.network, spec.student.preprocess) == ((), Training(), None, None)
    assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student": {}}, "exactly one of `student.weights`"),
        ({"student": {"job": "s1", "model": "m"}}, "exactly one of `student.weights`"),
        ({"teacher": {"model": "t"}}, "does not read teacher; leave that out"),
        ({"losses": "cwd"}, "does not read losses"),
        ({"train": {"epochs": 3}, "seeds": [1]}, r"does not read seeds, train \(but for train.threads\)"),
        ({"student": {"job": "s1", "taps": ["layer1"]}}, r"does not read student\.taps"),
        ({"export": {"precision": "float16"}}, "does not read export"),
        ({"resources": {"processes": 2}}, r"does not read resources\.processes"),
    ],
)
def test_what_a_kind_that_trains_nothing_would_not_read_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_spec(SCORE | change)


def test_threads_count_for_every_kind() -> None:
    assert parse_spec(SCORE | {"train": {"threads": 2}}).train.threads == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student": {}}, r"kind 'train' needs `student\.network`"),
        ({"student": {"network": "enet", "model": "m"}}, "are for kind: evaluate and kind: export"),
        ({"student": {"network": "enet", "job": "s1"}}, "are for kind: evaluate and kind: export"),
        ({"losses": []}, "give at least one loss"),
    ],
)
def test_a_training_without_what_it_needs_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_spec(TRAIN | change)


def test_a_trained_students_preprocessing_is_written_into_its_spec() -> None:
    assert parse_spec(TRAIN | {"student": {"network": "enet", "preprocess": None}}).student.preprocess == Preprocess()


def test_a_job_waits_for_those_it_names_once_each() -> None:
    assert parse_spec(DISTILL | {"needs": ["b2", "t1", "b2"]}).needed_jobs() == ("b2", "t1")
    assert parse_spec(SCORE | {"needs": ["b2"]}).needed_jobs() == ("b2", "s1")
    assert parse_spec(TRAIN).needed_jobs() == ()


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"needs": ["no such id"]}, "/needs/0", "no job's id; `dsd jobs` lists"),
        ({"needs": ["a" * 41]}, "/needs/0", "no job's id"),
        ({"priority": 101}, "/priority", "100"),
        ({"group": "Team A"}, "/group", "pattern"),
        ({"resources": {"device": "gpu"}}, "/resources/device", "any, cpu, cuda"),
        ({"resources": {"memory_gib": 0}}, "/resources/memory_gib", "greater than 0"),
        ({"resources": {"proceses": 2}}, "/resources/proceses", "Did you mean processes"),
        ({"webhook": "example.org/hook"}, "/webhook", "https://example.org"),
        ({"webhook": "ftp://example.org"}, "/webhook", "http or https"),
        ({"webhook": "https:///hook"}, "/webhook", "a host"),
        ({"webhook": "https://example.org:99999"}, "/webhook", "Port out of range"),
        ({"webhook": "https://me:secret@example.org"}, "/webhook", "leave user name and password out"),
        ({"webhook": "https://example.org/\n"}, "/webhook", "without spaces"),
        ({"webhook": "https://[::1"}, "/webhook", "Invalid IPv6"),
        ({"webhook": "https://example.org/" + "a" * 1000}, "/webhook", "at most 1000"),
    ],
)
def test_a_wrong_request_to_the_queue_names_its_field(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(TRAIN | change)
    assert caught.value.field == field
    assert says in caught.value.message


@pytest.mark.parametrize("address", ["https://example.org/hooks?job=1", "http://127.0.0.1:8080/h", "https://[::1]/h"])
def test_a_webhook_is_any_web_address(address: str) -> None:
    assert parse_spec(TRAIN | {"webhook": address}).webhook == address


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"priority": 5, "group": "b", "needs": ["b2"]},
        {"labels": {"team": "b"}, "max_runtime_s": 5},
        {"webhook": "https://example.org/hook"},
        {"export": {"precision": "float16"}},
        {"resources": {"device": "cpu", "memory_gib": 2, "labels": {"zone": "b"}}},
        {"train": {"log_every": 7, "checkpoints_kept": 2, "resume": "strict"}},
    ],
)
def test_how_a_job_is_found_queued_placed_and_written_leaves_its_training_the_same(change: dict[str, Any]) -> None:
    before, after = parse_spec(TRAIN), parse_spec(TRAIN | change)
    assert after.training_digest() == before.training_digest()
    assert after.digest() != before.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "distill", "teacher": {"job": "t1"}, "losses": "plain"},
        {"dataset": {"name": "streets", "size": [64, 64]}},
        {"student": {"network": "enet"}},
        {"losses": [{"loss": "dice"}]},
        {"train": {"seed": 1}},
        {"train": {"accumulate": 2}},
        {"train": {"norms_every": 7}},
        {"evaluate": {"every_epochs": 3}},
        {"baseline": True},
        {"seeds": [3]},
        {"resources": {"processes": 2}},
    ],
)
def test_whatever_the_weights_depend_on_makes_another_training(change: dict[str, Any]) -> None:
    assert parse_spec(TRAIN | change).training_digest() != parse_spec(TRAIN).training_digest()


def test_every_field_of_a_job_is_described_for_the_api(tmp_path: Any) -> None:
    schemas = create_app(Settings(home=tmp_path)).openapi()["components"]["schemas"]
    undescribed = [
        f"{part}.{name}"
        for part in ("JobSpec", "Resources")
        for name, schema in schemas[part]["properties"].items()
        if "description" not in schema and "$ref" not in schema
    ]
    assert undescribed == []
    assert schemas["JobSpec"]["properties"]["needs"]["items"]["pattern"] == "^[0-9a-z]{1,40}$"
    assert set(schemas["JobSpec"]["properties"]) == set(JobSpec.model_fields)


@pytest.mark.parametrize(
    ("change", "unread"),
    [
        ({"signals": "off", "views": 4}, "views is not read with `signals: off`"),
        ({"signals": "image", "view_seed": 3}, "view_seed is not read with `signals: image`"),
        ({"signals": "view", "scales": [0.5, 1.0]}, "scales is not read with `signals: view`"),
        ({"signals": "off", "top_k": 3, "store": "require"}, "top_k, store are not read with `signals: off`"),
    ],
)
def test_fields_of_signals_that_would_not_be_read_are_refused(change: dict[str, Any], unread: str) -> None:
    with pytest.raises(SpecError, match=re.escape(unread)):
        parse_spec(DISTILL | change)


def test_a_job_without_a_teacher_takes_no_signals() -> None:
    with pytest.raises(SpecError, match="signals is not read by kind 'train'"):
        parse_spec(TRAIN | {"signals": "image"})


def test_what_becomes_of_a_full_disk_leaves_the_training_the_same_and_the_views_do_not() -> None:
    job, required = parse_spec(DISTILL), parse_spec(DISTILL | {"store": "require"})
    assert (
        job.training_digest()
        == required.training_digest()
        != parse_spec(DISTILL | {"signals": "off"}).training_digest()
    )
