"""The client against the real API, as `dsd up` runs it, with no worker to take the jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from client.errors import ApiError
from client.http import Client
from tests.client.supervised import Up

SPEC = {"kind": "train", "name": "kept", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that queues jobs."""
    up = Up(tmp_path_factory.mktemp("service"), "--workers", "0")
    try:
        yield up.ready(children=3)["api_url"]
    finally:
        up.process.terminate()
        up.process.communicate(timeout=60)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def dsd(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"DSD_URL": url, "COLUMNS": "120"})


def test_the_same_submission_twice_makes_one_job(client: Client) -> None:
    first, second = client.submit(SPEC, key="one"), client.submit(SPEC, key="one")
    assert first["id"] == second["id"]
    assert client.submit(SPEC)["id"] != first["id"]


def test_pages_of_jobs_are_one_list(client: Client) -> None:
    ids = [client.submit(SPEC | {"name": "paged"})["id"] for _ in range(3)]
    assert [job["id"] for job in client.jobs(page=2, name="paged")] == ids[::-1]


def test_a_cancelled_job_tells_its_story_and_ends(client: Client) -> None:
    job = client.submit(SPEC)
    assert client.cancel(job["id"])["status"] == "cancelled"
    moves = [event["data"]["to"] for event in client.events(job["id"]) if event["type"] == "status"]
    assert moves == ["queued", "cancelled"]


def test_every_wrong_field_of_a_submission_is_named(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit(SPEC | {"student": {"network": "espnt"}, "train": {"epochs": 0}})
    assert caught.value.status == 422
    assert "/student/network" in caught.value.message and "/train/epochs" in caught.value.message


def test_logs_and_metrics_of_a_job_that_has_not_begun_are_empty(client: Client) -> None:
    job = client.submit(SPEC)
    assert client.logs(job["id"]) == ""
    assert client.metrics(job["id"])["data"] == {}


def test_the_commands_print_what_the_service_says(url: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(SPEC))
    submitted = json.loads(dsd(url, "submit", str(tmp_path / "job.json"), "--json").stdout)
    assert submitted["status"] == "queued"
    assert submitted["id"] in dsd(url, "jobs").stdout
    assert "no worker" in dsd(url, "show", submitted["id"]).stdout
    assert "cancelled" in dsd(url, "cancel", submitted["id"]).stdout
    watched = dsd(url, "watch", submitted["id"])
    assert watched.exit_code == 1 and "cancelled" in watched.stdout
    assert "can be run" in dsd(url, "validate", str(tmp_path / "job.json")).stdout
    assert "espnet" in dsd(url, "catalog").stdout
    assert "resnet18" in dsd(url, "catalog", "--search", "resnet18").stdout
    assert dsd(url, "models", "--json").stdout == "[]\n"


def test_an_unknown_job_is_an_error_that_says_where_jobs_are_listed(url: str) -> None:
    result = dsd(url, "show", "nosuchjob")
    assert result.exit_code == 1
    assert isinstance(result.exception, ApiError) and "nosuchjob" in result.exception.message
