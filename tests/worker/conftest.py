"""A database and run folders for each test, and workers as threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

import pytest

from jobs import db
from jobs.settings import Settings
from tests.worker.mlflow_server import MlflowServer
from tests.worker.service import SCRIPTED, RunningWorker, Service
from worker import run


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        home=tmp_path, lease_s=20, heartbeat_s=0.2, grace_s=10, tick_s=0.2, database_url=None, broker_url=None
    )
    db.migrate(settings.db_url)
    engine = db.make_engine(settings.db_url)
    yield Service(settings, engine)
    engine.dispose()


@pytest.fixture
def in_background(service: Service) -> Iterator[Callable[..., RunningWorker]]:
    """Run an attempt in a thread. Threads end before the test does."""
    workers: list[RunningWorker] = []

    def start(
        job_id: str, attempt: int = 1, settings: Settings | None = None, command: Sequence[str] = SCRIPTED
    ) -> RunningWorker:
        stopping, ended = Event(), []

        def work() -> None:
            chosen = settings or service.settings
            ended.append(
                run.run_job(chosen, job_id, attempt, worker="thread", command=command, stopping=stopping.is_set)
            )

        worker = RunningWorker(stopping, Thread(target=work), ended)
        worker.thread.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stopping.set()
        worker.thread.join(30)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for all tests: it takes ten seconds and more to start. Tests name their jobs apart."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.end()
