from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from jobs import queue
from tests.servers import Valkey


def test_a_message_holds_an_id_and_an_attempt_and_nothing_else(valkey: Valkey) -> None:
    queue.publish(queue.make_app(valkey.url), "some-job", 2)
    (raw,) = valkey.client().lrange("dsd:jobs", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["task"] == queue.TASK
    assert message["headers"]["id"] == "some-job:2"
    assert message["content-type"] == "application/json"
    assert message["headers"]["argsrepr"] == "['some-job', 2]" and message["headers"]["kwargsrepr"] == "{}"


def test_messages_outlive_the_broker(valkey: Valkey) -> None:
    app = queue.make_app(valkey.url)
    queue.publish(app, "before", 1)
    valkey.sync()
    valkey.kill()
    valkey.start()
    queue.publish(app, "after", 1)
    assert valkey.client().llen("dsd:jobs") == 2


def test_publishing_without_a_broker_fails_within_seconds(tmp_path: Path) -> None:
    app = queue.make_app(f"redis+socket://{tmp_path}/nobody.sock")
    began = time.monotonic()
    with pytest.raises(OperationalError):
        queue.publish(app, "some-job", 1)
    assert time.monotonic() - began < 10


def test_a_broker_is_alive_or_not(valkey: Valkey) -> None:
    assert queue.broker_alive(valkey.url)
    valkey.kill()
    assert not queue.broker_alive(valkey.url)


def test_work_is_acknowledged_early_never_fetched_ahead_and_never_ended_by_celery() -> None:
    conf = queue.make_app("redis://localhost").conf
    assert (conf.task_acks_late, conf.worker_disable_prefetch, conf.worker_prefetch_multiplier) == (False, True, 1)
    assert (conf.task_time_limit, conf.worker_cancel_long_running_tasks_on_connection_loss) == (None, False)
    assert (conf.accept_content, conf.task_serializer, conf.result_backend) == (["json"], "json", None)
    assert conf.broker_connection_max_retries is None


@pytest.fixture
def received(valkey: Valkey, tmp_path: Path) -> Iterator[Path]:
    """The file in which a running worker writes down the messages it gets."""
    file = tmp_path / "received"
    file.touch()
    command = [sys.executable, "-m", "tests.jobs.recording_worker", valkey.url, str(file)]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log)
    yield file
    worker.terminate()
    worker.wait(30)


def test_a_worker_hears_of_jobs_again_after_the_broker_was_killed(valkey: Valkey, received: Path) -> None:
    app = queue.make_app(valkey.url)
    queue.publish(app, "before", 1)
    wait_for(received, "before 1\n")
    valkey.kill()
    valkey.start()
    queue.publish(app, "after", 1)
    wait_for(received, "before 1\nafter 1\n")


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while file.read_text() != text:
        assert time.monotonic() < deadline, f"got {file.read_text()!r}"
        time.sleep(0.05)
