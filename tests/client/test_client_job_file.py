"""Job files on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import job_file
from client.pipeline import stand_alone
from dsd_core.errors import SpecError
from dsd_core.spec import parse_spec

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_one_or_more_whole_jobs(path: Path) -> None:
    assert all(parse_spec(job).name for job in stand_alone(job_file.read_all(path)))


def test_overrides_reach_nested_fields_lists_and_fields_that_are_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nlosses: [{loss: ce}]\ntrain:\n")
    job = job_file.read(
        tmp_path / "job.yaml", ["train.epochs=3", "losses.0.weight=0.5", "train.augment.crop=[64, 96]", "name=b"]
    )
    assert job["train"] == {"epochs": 3, "augment": {"crop": [64, 96]}}
    assert job["losses"] == [{"loss": "ce", "weight": 0.5}]
    assert job["name"] == "b"


@pytest.mark.parametrize("override", ["epochs", "=3", "name.first=b", "losses.4.weight=1", "a..b=1", "name=[1"])
def test_an_override_that_cannot_be_applied_is_named(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        job_file.apply({"name": "a", "losses": [{}]}, override)
    assert "--set" in caught.value.message


def test_relative_paths_are_taken_from_where_the_user_stands() -> None:
    job = {"dataset": {"root": "data"}, "teacher": {"weights": "t.safetensors"}, "student": {"weights": "/abs.st"}}
    made = job_file.absolute(job, Path("/here"))
    assert made["dataset"]["root"] == "/here/data"
    assert made["teacher"]["weights"] == "/here/t.safetensors"
    assert made["student"]["weights"] == "/abs.st"
    assert job["dataset"]["root"] == "data"


@pytest.mark.parametrize(("text", "said"), [(None, "no job file"), ("a: [", "cannot be read"), ("- 1", "mapping")])
def test_an_unreadable_job_file_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=said) as caught:
        job_file.read(path)
    assert str(path) in caught.value.message
