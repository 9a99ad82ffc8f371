"""What the API does while the database is slow."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from api.main import CONNECTIONS, PATIENCE_S
from tests.api.conftest import JOBS, problem_in, serving

CALLERS = CONNECTIONS + 5
SLOW_MACHINE_S = 9.0  # without PATIENCE_S a statement takes 10 s at least, and a connection 30


@pytest.mark.fault("F23")
def test_a_database_that_does_not_answer_in_time_is_a_503_while_the_process_lives(
    tmp_path: Path, small_camvid: Path, postgres_url: str
) -> None:
    """The statements of some callers wait for a lock, the others for a connection."""
    with serving(tmp_path, small_camvid, postgres_url) as service, ThreadPoolExecutor(CALLERS) as pool:
        with service.engine.begin() as blocker:
            blocker.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            began = time.monotonic()
            answers = [pool.submit(service.http.get, JOBS) for _ in range(CALLERS)]
            assert service.http.get("/livez").status_code == 200
            assert time.monotonic() - began < PATIENCE_S
            for answer in answers:
                problem_in(answer.result(), 503, "database_away")
                assert answer.result().headers["retry-after"]
            assert time.monotonic() - began < SLOW_MACHINE_S
        assert {pool.submit(service.http.get, JOBS).result().status_code for _ in range(CALLERS)} == {200}
