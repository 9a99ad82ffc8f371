"""The example of several jobs in one file is taken by the service as it is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from client import job_file
from client.errors import ApiError
from client.http import Client
from client.pipeline import submit_all
from tests.api.conftest import JOBS, Service
from tests.conftest import ROOT


@pytest.fixture
def client(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The command's client, whose requests the API answers without a socket between them."""

    def answer(request: httpx.Request) -> httpx.Response:
        sent = service.http.request(
            request.method, str(request.url), content=request.content, headers=dict(request.headers)
        )
        return httpx.Response(sent.status_code, json=sent.json())

    monkeypatch.setenv("DSD_HOME", str(tmp_path / "client"))
    return Client("http://localhost", transport=httpx.MockTransport(answer))


def test_the_pipeline_is_queued_and_each_job_waits_for_those_it_names(client: Client) -> None:
    teacher, student, score, export = submit_all(client, job_file.read_all(ROOT / "examples" / "pipeline.yaml"))
    assert [job["kind"] for job in (teacher, student, score, export)] == ["train", "distill", "evaluate", "export"]
    assert student["spec"]["teacher"]["job"] == teacher["id"]
    assert score["spec"]["student"]["job"] == export["spec"]["student"]["job"] == student["id"]
    assert export["spec"]["needs"] == [score["id"]]
    assert export["name"] == student["name"]


def test_a_pipeline_with_a_job_that_cannot_run_leaves_nothing_in_the_queue(client: Client, service: Service) -> None:
    jobs = job_file.read_all(ROOT / "examples" / "pipeline.yaml")
    jobs[2]["student"]["network"] = "fpn:resnet18"
    with pytest.raises(ApiError, match=r"Job pipeline-score \(3 of 4 in the file\)") as caught:
        submit_all(client, jobs)
    assert caught.value.field == "/student/network"
    assert "Cancelled with it: pipeline-teacher, pipeline-student." in caught.value.message
    listed = service.http.get(JOBS).json()["data"]
    assert [job["status"] for job in listed] == ["cancelled", "cancelled"]
