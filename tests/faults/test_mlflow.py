"""MLflow that is down, silent or slow. Jobs do not wait for it, and it has everything once it answers again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.status import Status
from tests.faults.proxy import Mode, Proxy
from tests.faults.site import Site
from tests.worker.mlflow_server import MlflowServer
from tests.worker.service import until
from tests.worker.tiny_student import write_student
from worker import tracking

pytestmark = [pytest.mark.timeout(240), pytest.mark.faults_only]

STEPS = 40


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.end()


@pytest.fixture
def line(mlflow_server: MlflowServer) -> Iterator[Proxy]:
    """The way to MLflow."""
    proxy = Proxy(("127.0.0.1", 0), ("127.0.0.1", mlflow_server.port))
    yield proxy
    proxy.close()


def url(line: Proxy) -> str:
    return "http://{}:{}".format(*line.listens_at())


def a_job(site: Site, name: str, script: str) -> str:
    """One whose student can be registered."""
    job = site.submit(script, name=name)
    write_student(site.folder(job) / "student")
    return job


def followed(site: Site, mlflow_server: MlflowServer, job: str, name: str) -> None:
    """MLflow comes to have one run with every point once, and one version of the model."""
    until(lambda: site.row(job).tracking == "synced" and site.row(job).model_version == 1, 90)
    client = tracking.mlflow.MlflowClient(mlflow_server.url)
    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    history = client.get_metric_history(site.row(job).mlflow_run_id, "student/loss/loss")
    assert Counter(point.step for point in history) == dict.fromkeys(range(1, STEPS + 1), 1)


@pytest.mark.fault("F25", "F27")
def test_a_job_succeeds_while_mlflow_is_down_and_is_registered_once_it_is_back(
    site: Site, mlflow_server: MlflowServer
) -> None:
    site.fleet.controller(mlflow_url=mlflow_server.url)
    site.fleet.worker("one")
    job = a_job(site, "mlflow-down", f"wait_for=go steps={STEPS} finish")
    until(lambda: site.row(job).mlflow_run_id and site.pids(job))
    mlflow_server.end()
    try:
        (site.folder(job) / "go").touch()
        site.all_end()
        until(lambda: site.row(job).tracking == "stalled")
        assert site.row(job).model_version is None
    finally:
        mlflow_server.start()
    followed(site, mlflow_server, job, "mlflow-down")


@pytest.mark.fault("F26")
@pytest.mark.parametrize(("mode", "bytes_per_s"), [("blackhole", None), ("cut", None), ("pass", 1.0)])
def test_a_job_succeeds_while_mlflow_keeps_silent_refuses_or_is_endlessly_slow(
    site: Site, mlflow_server: MlflowServer, line: Proxy, mode: Mode, bytes_per_s: float | None
) -> None:
    line.set(mode)
    line.bytes_per_s = bytes_per_s
    name = f"mlflow-{mode}"
    site.fleet.controller(mlflow_url=url(line))
    site.fleet.worker("one")
    job = a_job(site, name, f"steps={STEPS} finish")
    until(lambda: site.status(job) == Status.SUCCEEDED, 30)
    until(lambda: site.row(job).tracking == "stalled")
    line.set("pass")
    line.bytes_per_s = None
    followed(site, mlflow_server, job, name)


@pytest.mark.fault("F27")
def test_a_controller_that_dies_while_it_registers_makes_no_second_version(
    site: Site, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    site.fleet.worker("one")
    job = a_job(site, "killed", f"steps={STEPS} finish")
    for number in range(3):
        controller = site.fleet.controller(f"controller-{number}", mlflow_url=mlflow_server.url)
        until(lambda: site.status(job) == Status.SUCCEEDED and site.row(job).tracking_seq)
        controller.kill()
    site.fleet.controller("last", mlflow_url=mlflow_server.url)
    followed(site, mlflow_server, job, "killed")
