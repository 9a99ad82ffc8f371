"""docker-compose.yml and the images it builds, as far as they can be judged without a container engine.

compose-spec.json is the schema of the Compose Specification (github.com/compose-spec/compose-spec, Apache-2.0), as in
compose/config/compose_spec.json of the Python package docker-compose 1.29.2.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import distribution, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any

import grimp
import pytest
from jsonschema import Draft201909Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dsd_core.models.licences import ALLOW
from jobs.settings import Settings
from tests.conftest import ROOT
from tests.system.compose import FILE, OURS, SERVICES, VARIABLE, interpolate, seconds

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("api", "client", "deploy", "dsd_core", "jobs", "worker")
ONE_SHOT = ("migrate",)
IMAGES = {  # the extras in each image, and what it runs
    "api": (["api", "s3"], ["api.main", "deploy.migrate", "deploy.health"]),
    "tracking": (["worker", "s3"], ["worker.controller", "deploy.health"]),
    "worker": (["core", "worker", "s3"], ["worker.tasks", "dsd_core.__main__", "deploy.health"]),
}


def dockerfile(name: str) -> str:
    return (ROOT / "deploy" / f"{name}.Dockerfile").read_text().replace("\\\n", " ")


def test_the_file_follows_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    assert [error.message for error in Draft201909Validator(schema).iter_errors(FILE)] == []


def test_every_setting_in_the_file_exists() -> None:
    known = {ALLOW, *(f"DSD_{name.upper()}" for name in Settings.model_fields)}
    used = {name for service in SERVICES.values() for name in service.get("environment", {}) if name.startswith("DSD_")}
    assert used and used <= known


def test_our_services_get_one_environment() -> None:
    common = FILE["x-dsd-environment"]
    for name in OURS:
        if name != "mlflow":
            assert common.items() <= SERVICES[name]["environment"].items(), name


def test_there_is_no_secret_in_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), name
            assert not re.search(r"://[^/@]*:[^/@]*@", value or ""), f"{name} holds a password"
    example = (ROOT / ".env.example").read_text()
    assert re.search("^POSTGRES_PASSWORD=$", example, re.MULTILINE)


def test_every_variable_of_the_file_is_explained_in_the_example() -> None:
    used = {match[1] for match in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}
    unset = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if not value
    }
    explained = set(re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used | unset == {name for name in explained if not name.startswith("COMPOSE_")}


def test_ports_are_published_to_this_host_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"api", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_images_have_versions_and_ours_have_this_one() -> None:
    for name, service in SERVICES.items():
        repository, _, tag = service["image"].partition(":")
        assert re.match(r"\d+(\.\d+)*(-|$)", tag), f"{name}: {service['image']}"
        if repository.startswith("dsd-"):
            assert tag.removesuffix("-cpu") == version("dsd")
    bases = {line for name in IMAGES for line in re.findall(r"^FROM (\S+)", dockerfile(name), re.MULTILINE)}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.\d+-slim-\w+", bases.pop())


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_a_program_of_its_image(name: str) -> None:
    program, *words = SERVICES[name]["command"]
    extras, _ = IMAGES[image_of(name)]
    if program == "python":
        assert words[0] == "-m" and words[1] in IMAGES[image_of(name)][1]
        return
    scripts = entry_points(group="console_scripts", name=program)
    assert closure(extras) & {canonicalize_name(script.dist.name) for script in scripts if script.dist}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_all_that_its_programs_import(image: str) -> None:
    extras, programs = IMAGES[image]
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, exclude_type_checking_imports=True)
    imported = {name.partition(".")[0] for program in programs for name in graph.find_upstream_modules(program)}
    theirs = imported - set(PACKAGES) - set(sys.stdlib_module_names)
    providers = packages_distributions()
    installed = closure(extras)
    assert {name for name in theirs if not installed & {canonicalize_name(d) for d in providers[name]}} == set()
    assert ("torch" in installed) == (image == "worker")


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_built_of_pinned_packages_and_run_without_root(image: str) -> None:
    text = dockerfile(image)
    assert f"-c constraints.txt '.[{','.join(IMAGES[image][0])}]'" in text.replace("  ", " ")
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER dsd$", final, re.MULTILINE) and "HEALTHCHECK" in final
    copied = set(re.search(r"^COPY (pyproject.toml .*) \./$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    passed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied | set(PACKAGES) <= passed and all((ROOT / name).exists() for name in passed)


@pytest.mark.parametrize(("image", "service"), [("api", "api"), ("tracking", "controller"), ("worker", "worker")])
def test_images_run_and_check_by_themselves_what_the_file_says(image: str, service: str) -> None:
    command = re.search(r"^CMD (.*)$", dockerfile(image), re.MULTILINE)
    assert command is not None and json.loads(command[1]) == SERVICES[service]["command"]
    kind, *words = (word.replace("$$", "$") for word in SERVICES[service]["healthcheck"]["test"])
    check = re.search(r"HEALTHCHECK.*?CMD (.*)$", dockerfile(image), re.MULTILINE)
    assert check is not None
    assert (json.loads(check[1]) if kind == "CMD" else [check[1]]) == words


def test_everything_has_a_health_check_and_is_started_again() -> None:
    for name, service in SERVICES.items():
        if name in ONE_SHOT:
            assert service["restart"].startswith("on-failure") and service["healthcheck"] == {"disable": True}
        else:
            assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"], name
        for other, after in service.get("depends_on", {}).items():
            done = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert after["condition"] == done, f"{name} after {other}"


def test_workers_have_time_for_a_checkpoint() -> None:
    for name in ("worker", "worker-cpu"):
        grace_s = float(SERVICES[name]["environment"]["DSD_GRACE_S"])
        assert seconds(SERVICES[name]["stop_grace_period"]) >= max(120, grace_s + 30)


def test_run_folders_are_shared_and_data_cannot_be_written() -> None:
    for name in ("api", "controller", "worker", "worker-cpu"):
        mounts = {volume["target"]: volume for volume in SERVICES[name]["volumes"]}
        storage = interpolate(SERVICES[name]["environment"]["DSD_STORAGE"], {})
        assert mounts[storage]["source"] == "storage"
        if name != "controller":
            assert mounts[SERVICES[name]["environment"]["DSD_DATA_ROOTS"]]["read_only"] is True
    named = {v["source"] for service in SERVICES.values() for v in service.get("volumes", ()) if v["type"] == "volume"}
    assert named == FILE["volumes"].keys()


def test_only_the_worker_of_profile_gpu_asks_for_a_gpu() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
    }
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in SERVICES["worker-cpu"]


def test_mlflow_answers_to_its_names_and_runs_no_jobs() -> None:
    service = SERVICES["mlflow"]
    (hosts,) = (word.partition("=")[2].split(",") for word in service["command"] if word.startswith("--allowed-hosts"))
    url = SERVICES["controller"]["environment"]["DSD_MLFLOW_URL"]
    assert {url.removeprefix("http://"), "localhost:*"} <= set(hosts) and "*" not in hosts
    assert service["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert service["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert service["environment"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def image_of(service: str) -> str:
    return Path(SERVICES[service]["build"]["dockerfile"]).name.removesuffix(".Dockerfile")


def closure(extras: list[str]) -> set[str]:
    """The canonical names of all packages that dsd with these extras installs here."""
    optional = PROJECT["project"]["optional-dependencies"]
    waiting = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    waiting += [Requirement(line) for extra in extras for line in optional[extra]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "dsd":
            waiting += [Requirement(line) for extra in requirement.extras for line in optional[extra]]
            continue
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            lines = distribution(name).requires or []
            waiting += [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}
