"""What the API says of itself: catalog, OpenAPI, the page at /docs, health; and that importing it stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi import FastAPI

from dsd_core.data import DATASETS
from dsd_core.distill.losses import LOSSES
from dsd_core.distill.presets import PRESETS
from dsd_core.models.names import encoders
from dsd_core.models.zoo_names import ZOO_TEACHERS
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS
from dsd_core.spec import JobSpec, parse_spec
from tests.api.conftest import Service, problem_in, serving


@pytest.fixture
def document(steady: Service) -> dict[str, Any]:
    found: dict[str, Any] = steady.http.get("/openapi.json").json()
    return found


def test_the_catalog_holds_every_name_that_a_spec_may_hold(steady: Service) -> None:
    catalog = steady.http.get("/api/v1/catalog").json()
    assert [network["name"] for network in catalog["networks"]] == [*OWN_NETWORKS, *TORCHVISION_NETWORKS, *DECODERS]
    assert [loss["name"] for loss in catalog["losses"]] == list(LOSSES)
    assert catalog["presets"] == PRESETS
    assert [dataset["name"] for dataset in catalog["datasets"]] == list(DATASETS)
    assert [teacher["name"] for teacher in catalog["zoo_teachers"]] == list(ZOO_TEACHERS)
    assert catalog["encoders"]["count"] == len(encoders())
    assert all(entry["description"] for kind in ("networks", "losses", "datasets") for entry in catalog[kind])


def test_the_schemas_of_the_catalog_are_json_schemas(steady: Service) -> None:
    catalog = steady.http.get("/api/v1/catalog").json()
    schemas = [catalog["job_schema"], *[entry["schema"] for kind in ("losses", "datasets") for entry in catalog[kind]]]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(parse_spec(steady.body()).model_dump(mode="json"), catalog["job_schema"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(steady.body(colour="red"), catalog["job_schema"])


@pytest.mark.parametrize(("search", "among"), [("resnet18", "resnet18"), ("tu-ghost", "tu-ghostnet_100")])
def test_encoders_can_be_searched(steady: Service, search: str, among: str) -> None:
    found = steady.http.get(f"/api/v1/catalog?search={search}").json()["encoders"]
    assert among in found["names"]
    assert 0 < found["count"] < len(encoders())
    assert all(search in name for name in found["names"])


def test_a_search_that_finds_nothing_offers_what_is_near(steady: Service) -> None:
    assert "resnet18" in steady.http.get("/api/v1/catalog?search=resnet17").json()["encoders"]["names"]


def test_every_operation_has_a_summary_a_description_and_a_problem_as_its_error(document: dict[str, Any]) -> None:
    operations = [(path, operation) for path, methods in document["paths"].items() for operation in methods.values()]
    assert len(operations) >= 15
    for path, operation in operations:
        assert operation["summary"] and operation["description"], path
        if path.startswith("/api/"):
            assert "422" not in operation["responses"], path
            content = operation["responses"]["default"]["content"]
            assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_every_route_is_in_the_document(steady: Service, document: dict[str, Any]) -> None:
    assert isinstance(steady.http.app, FastAPI)
    wanted = {"/jobs", "/jobs/validate", "/jobs/{job_id}", "/jobs/{job_id}/events"}
    wanted |= {f"/jobs/{{job_id}}/{ask}" for ask in ("cancel", "pause", "resume", "stop", "retry", "clone")}
    wanted |= {"/workers", "/workers/{name}/drain", "/workers/{name}/undrain"}
    wanted |= {"/jobs/{job_id}/logs", "/jobs/{job_id}/metrics", "/catalog", "/models", "/models/{name}"}
    wanted |= {"/models/{name}/versions/{version}", "/models/{name}/versions/{version}/files/{file}"}
    wanted |= {"/storage", "/storage/prune", "/signals", "/signals/verify", "/signals/prune"}
    assert set(document["paths"]) == {f"/api/v1{path}" for path in wanted} | {"/livez", "/readyz"}


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    names = {reference.rpartition("/")[2] for reference in _references(document)}
    assert names <= set(document["components"]["schemas"])
    assert {"JobSpec", "Problem", "Job", "Result"} <= names


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [reference for value in part.values() for reference in _references(value)]
    return [reference for value in part for reference in _references(value)] if isinstance(part, list) else []


def test_the_body_of_a_submission_is_a_job_spec(document: dict[str, Any]) -> None:
    for path in ("/api/v1/jobs", "/api/v1/jobs/validate"):
        body = document["paths"][path]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    schema = document["components"]["schemas"]["JobSpec"]
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    assert set(schema["required"]) == {"name", "dataset", "student"}


def test_the_page_of_the_documentation_loads_nothing_from_elsewhere(steady: Service) -> None:
    assert steady.http.get("/").headers["location"] == "/docs"
    page = steady.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(https?:)?//[a-z]", page.text.replace("<!doctype", ""))
    assert re.findall(r'(?:src|href)="([^"#]*)"', page.text) == ["data:,", "openapi.json"]
    assert "innerHTML" not in page.text


def test_the_process_lives_whatever_else_is_away(steady: Service) -> None:
    assert steady.http.get("/livez").json() == {"status": "alive"}


def test_without_broker_and_mlflow_the_service_is_ready_but_degraded(steady: Service) -> None:
    answer = steady.http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "degraded",
        "database": "ok",
        "broker": "not configured",
        "mlflow": "not configured",
    }


@pytest.mark.fault("F14")
def test_a_broker_that_answers_is_told_from_one_that_is_away(
    tmp_path: Path, small_camvid: Path, sqlite_url: str, broker_url: str
) -> None:
    for url, broker in ((broker_url, "ok"), (f"redis+socket://{tmp_path}/none.sock", "away")):
        with serving(tmp_path, small_camvid, sqlite_url, broker_url=url, mlflow_url="http://127.0.0.1:9") as service:
            parts = service.http.get("/readyz").json()
            assert (parts["broker"], parts["mlflow"], parts["status"]) == (broker, "away", "degraded")
            assert service.submit()["status"] == "queued"


def test_importing_the_api_brings_in_neither_torch_nor_mlflow() -> None:
    code = "import api.main, sys; print(sorted({'torch', 'torchvision', 'mlflow', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_answers_that_are_not_json_are_negotiated_by_no_one(steady: Service) -> None:
    """A client that wants a type we do not have gets JSON, not an error."""
    assert steady.http.get("/api/v1/jobs", headers={"Accept": "text/html"}).status_code == 200
    problem_in(steady.http.get("/api/v1/jobs/x", headers={"Accept": "text/html"}), 404, "job_not_found")
