"""A database and run folders for each test, and workers as threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from jobs import db
from jobs.settings import Settings
from tests.worker.mlflow_server import MlflowServer
from tests.worker.service import RunningWorker, Service
from worker.board import Board


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    quick = {"lease_s": 20, "heartbeat_s": 0.2, "grace_s": 10, "tick_s": 0.2, "backoff_s": 0}
    settings = Settings(home=tmp_path, database_url=None, broker_url=None, **quick)
    db.migrate(settings.db_url)
    engine = db.make_engine(settings.db_url)
    yield Service(settings, engine)
    engine.dispose()


@pytest.fixture
def in_background(service: Service) -> Iterator[Callable[..., RunningWorker]]:
    """Run an attempt in a thread. Threads end before the test does."""
    workers: list[RunningWorker] = []

    def start(job_id: str, host: Service = service, **settings: float) -> RunningWorker:
        """`settings` are changes to those of the host, the service's own unless another is given."""
        board, ended = Board(), []
        chosen = replace(host, settings=host.settings.model_copy(update=settings))
        worker = RunningWorker(board, Thread(target=lambda: ended.append(chosen.run(job_id, board))), ended)
        worker.thread.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.board.shutting_down = True
        worker.thread.join(30)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for all tests: it takes ten seconds and more to start. Tests name their jobs apart."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.end()
