"""Every oracle names what it is there to find; one that is always content would prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from jobs import db, store
from jobs.status import Reason, Status
from tests.faults import oracles
from tests.jobs.builders import a_queued_job, a_running_job


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def done(engine: Engine) -> str:
    """A job that succeeded in good order."""
    held = a_running_job(engine)
    with db.begin(engine) as s:
        store.finish(s, held, Reason.FINISHED, result={}, run_seconds=1.0)
    return held.job_id


def test_a_job_that_succeeded_in_good_order_breaks_nothing(engine: Engine, done: str, tmp_path: Path) -> None:
    assert [*oracles.broken_histories(engine), *oracles.wrong_ends(engine, {done: {Status.SUCCEEDED}})] == []
    assert list(oracles.left_behind(engine, tmp_path, {done})) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("DELETE FROM job_events WHERE seq = 2", "other numbers"),
        ("UPDATE job_events SET data = json_set(data, '$.to', 'failed') WHERE seq = 1", "no legal move"),
        ("UPDATE job_events SET data = json_set(data, '$.from', 'queued') WHERE seq = 3", "and then from queued"),
        ("UPDATE job_events SET data = json_set(data, '$.fence', 0) WHERE seq = 3", "fence went from 1 to 0"),
        ("UPDATE job_events SET data = json_set(data, '$.fence', 0) WHERE seq = 2", "fence went from 0 to 0"),
        ("UPDATE job_events SET data = json_set(data, '$.to', 'succeeded') WHERE seq = 2", "more than once"),
        ("UPDATE jobs SET status = 'running'", "which its history does not say"),
        ("UPDATE jobs SET result = NULL", "has no result"),
        ("UPDATE jobs SET result_fence = 7", "its result is of fence 7"),
        ("UPDATE jobs SET attempt = 9", "it was tried 9 times"),
        ("UPDATE jobs SET lease_expires_at = '2000-01-01'", "but for its times"),
    ],
)
def test_what_may_not_be_in_a_history_is_named(engine: Engine, done: str, spoil: str, said: str) -> None:
    with db.begin(engine) as s:
        for trigger in s.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
            s.execute(text(f"DROP TRIGGER {trigger}"))
        s.execute(text(spoil))
    assert any(said in broken for broken in oracles.broken_histories(engine))


def test_a_lost_job_a_wrong_end_and_a_job_of_nobody_are_named(engine: Engine, done: str) -> None:
    queued = a_queued_job(engine)
    ledger = {done: {Status.FAILED}, "j-lost": {Status.SUCCEEDED}}
    assert list(oracles.wrong_ends(engine, ledger)) == [
        f"{done}: it is succeeded (finished), not failed",
        "j-lost: it is lost (None), not succeeded",
        f"{queued}: nobody submitted it",
    ]


def test_other_weights_are_named(tmp_path: Path) -> None:
    for name in ("same", "other"):
        (tmp_path / name).write_text(name)
    golden = oracles.digest(tmp_path / "same")
    said = list(oracles.other_weights(golden, {"a": tmp_path / "same", "b": tmp_path / "other"}))
    assert len(said) == 1 and said[0].startswith("b:")


def test_what_a_job_leaves_behind_is_named(engine: Engine, done: str, tmp_path: Path) -> None:
    (tmp_path / done / "checkpoints" / "00000010-1").mkdir(parents=True)
    (tmp_path / done / "checkpoints" / "00000020-1.tmp").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, "JOB_ID": done}
    )
    try:
        said = "\n".join(oracles.left_behind(engine, tmp_path, {done}))
    finally:
        child.communicate(b"\n")
    assert f"process {child.pid}" in said and "00000020-1.tmp is left" in said
    assert "no event speaks of ['checkpoints/00000010-1'" in said


def test_an_answer_of_500_and_a_503_without_cause_are_named() -> None:
    answers = [oracles.Answer("GET /a", 500, True), oracles.Answer("GET /b", 503, True, "5")]
    answers += [oracles.Answer("GET /c", 503, False, "5"), oracles.Answer("GET /d", 404, False)]
    said = list(oracles.wrong_answers(answers, 'INFO: 127.0.0.1:1 - "GET /e HTTP/1.1" 500 Internal Server Error\n'))
    assert [path for path in ("/a", "/b", "/c", "/d", "/e") if path in " ".join(said)] == ["/a", "/c", "/e"]
