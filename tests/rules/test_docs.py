"""The documents name what there is, and only that."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import typer.main

from api.main import create_app
from client.cli import app
from dsd_core.data import DATASETS
from dsd_core.distill.losses import LOSSES
from dsd_core.distill.presets import PRESETS
from dsd_core.models.licences import ALLOW
from dsd_core.models.zoo_names import ZOO_TEACHERS
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS
from dsd_core.spec import JobSpec, Kind, Resources
from jobs.settings import Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EVERYTHING = "\n".join(PAGES.values())
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())


def test_every_command_target_route_and_setting_is_documented(tmp_path: Path) -> None:
    wanted = [f"dsd {name}" for name in COMMANDS] + [f"make {name}" for name in TARGETS]
    wanted += [ALLOW, *(f"DSD_{name.upper()}" for name in Settings.model_fields)]
    wanted += list(create_app(Settings(home=tmp_path)).openapi()["paths"])
    assert [name for name in wanted if name not in EVERYTHING] == []


def test_the_readme_runs_only_commands_that_exist() -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", EVERYTHING, re.S))
    assert set(re.findall(r"^dsd (\w+)", blocks, re.M)) <= COMMANDS
    assert set(re.findall(r"^make (\w+)", blocks, re.M)) <= TARGETS


def test_every_loss_preset_network_dataset_and_published_teacher_is_documented() -> None:
    named = set(re.findall(r"`([^`\n]+)`", EVERYTHING))
    names = [*LOSSES, *PRESETS, *OWN_NETWORKS, *TORCHVISION_NETWORKS, *DECODERS, *DATASETS, *ZOO_TEACHERS]
    assert [name for name in names if name not in named] == []


def test_every_kind_of_job_and_every_field_of_one_is_documented() -> None:
    named = set(re.findall(r"`([^`\n]+)`", EVERYTHING)) | set(re.findall(r"^(\w+):", README, re.M))
    wanted = [*get_args(Kind), *JobSpec.model_fields, *Resources.model_fields]
    assert [name for name in wanted if name not in named] == []


def test_every_file_that_is_named_exists() -> None:
    folders = "dsd_core|jobs|api|worker|client|deploy|tests|examples"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)", EVERYTHING)
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page])
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## \[?(\d[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first and first[1] == version


def test_nothing_names_this_machine() -> None:
    home = str(Path.home())
    assert [str(page) for page, text in PAGES.items() if home + "/" in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_marks_of_a_merge(page: Path) -> None:
    assert re.findall(r"^(?:<{7}|={7}|>{7})(?: .*)?$", PAGES[page], re.M) == []
