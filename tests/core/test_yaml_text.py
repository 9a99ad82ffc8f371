"""YAML by the core schema of YAML 1.2."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_core.data.classes_file import read_classes
from dsd_core.spec import load_spec
from dsd_core.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: yes", {"on": "yes"}),
        ("[true, False, null, ~, ]", [True, False, None, None]),
        ("2026-11-24", "2026-11-24"),
        ("[1e-3, -2.5, .5, 7, 0, 010]", [0.001, -2.5, 0.5, 7, 0, 10.0]),
        ("1:30", "1:30"),
        ("[.inf, .nan]", [".inf", ".nan"]),
        ("a: &a {b: 1}\nc: {<<: *a, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ('{"a": [1, 2.0, "x"]}', {"a": [1, 2.0, "x"]}),
        ("", None),
    ],
)
def test_plain_values_are_what_yaml_1_2_says(text: str, value: object) -> None:
    assert repr(parse_yaml(text)) == repr(value)


@pytest.mark.parametrize("text", ["a: [1", "!!python/object/apply:os.getcwd []", "[" * 5000, "a: b: c"])
def test_what_is_no_document_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_yaml(text)


def test_a_job_file_may_say_on_which_features_a_loss_looks(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: a\nlabels: {day: 2026-11-24}\ndataset: {name: streets}\nstudent: {network: espnet}\n"
        "teacher: {model: t}\nlosses: [{loss: ce}, {loss: at, on: taps}]\n"
    )
    spec = load_spec(job)
    assert spec.losses[1].student_layers() == ("taps",)
    assert spec.labels == {"day": "2026-11-24"}


def test_a_class_may_be_called_off(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes: [on, off]\n")
    assert read_classes(tmp_path / "classes.yaml").classes == ("on", "off")
