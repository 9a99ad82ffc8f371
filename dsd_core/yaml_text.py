"""YAML as people mean it: the core schema of YAML 1.2, which has only `true` and `false` for booleans.

PyYAML follows YAML 1.1, where `on`, `off`, `yes` and `no` are booleans, `2026-11-24` is a date, `1e-3` is text and
`1:30` is ninety. Imports no torch.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class _CoreLoader(yaml.SafeLoader):
    """Plain values are null, booleans, integers or finite decimals by the patterns below, and else text."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012 - as in PyYAML


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """The one document in the text, YAML or JSON. Raises ValueError that says where it is wrong."""
    try:
        return yaml.load(text, _CoreLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{error}") from error


def parse_documents(text: str) -> list[Any]:
    """As `parse_yaml`, of any number of documents, which lines of `---` separate; empty ones are left out."""
    try:
        return [document for document in yaml.load_all(text, _CoreLoader) if document is not None]
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{error}") from error
