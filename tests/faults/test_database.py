"""A database that restarts, goes away, is cut off from some, breaks at the commit, or is written to by many."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import make_url, text

from jobs import db
from tests.faults.oracles import broken_histories
from tests.faults.proxy import Mode, Proxy
from tests.faults.site import Site, worker_with_training
from tests.faults.test_broker import proxied
from tests.worker.service import runs, until

pytestmark = pytest.mark.timeout(240)


@pytest.mark.faults_only
@pytest.mark.fault("F18")
def test_a_hundred_jobs_submitted_over_http_survive_a_database_that_restarts_all_the_time(site: Site) -> None:
    assert site.postgres is not None
    site.start_api()
    site.fleet.controller()
    for name in ("one", "two"):
        site.fleet.worker(name, app="tests.faults.bare_tasks")
    dice, restarts = random.Random(0), 0
    with site.something_off():
        submitting = Thread(target=submit_until_acknowledged, args=(site, 100))
        submitting.start()
        while submitting.is_alive() or not all_ended(site):
            site.postgres.restart()
            restarts += 1
            submitting.join(dice.uniform(1, 4))
    assert len(site.ledger) == 100 and restarts >= 5
    assert {answer.status for answer in site.answers} <= {200, 202, 503}
    assert {site.row(job).attempt for job in site.ledger} == {1}, "a job was taken from a worker that was there"


def submit_until_acknowledged(site: Site, jobs: int) -> None:
    for number in range(jobs):
        until(lambda number=number: site.post("bare", **{"Idempotency-Key": f"key-{number}"}).is_success)  # type: ignore[misc]


def all_ended(site: Site) -> bool:
    with db.reading(site.engine) as s:
        ended = s.execute(text("SELECT count(*) FROM jobs WHERE status = 'succeeded'")).scalar_one()
    return bool(ended == len(site.ledger))


@pytest.mark.faults_only
@pytest.mark.fault("F19")
def test_a_training_goes_on_while_the_database_is_down_and_its_weights_are_the_same(site: Site) -> None:
    assert site.postgres is not None
    site.fleet.controller()
    worker_with_training(site, "one")
    job = site.submit_real()
    until(lambda: site.events(job, "progress"))
    site.postgres.end()
    events = site.folder(job) / "events.jsonl"
    until(lambda: '"type":"finished"' in events.read_text())
    assert site.folder(job).joinpath("student", "model.safetensors").exists()
    site.postgres.start()
    site.all_end()
    assert (site.row(job).attempt, len(site.events(job, "started"))) == (1, 1)


@pytest.mark.faults_only
@pytest.mark.fault("F20")
@pytest.mark.parametrize("how", ["cut", "blackhole", "half_open"])
def test_a_worker_that_is_cut_off_from_the_database_loses_its_job_and_learns_it(
    site: Site, tmp_path: Path, how: Mode
) -> None:
    assert site.postgres is not None
    site.fleet.controller()
    job = site.submit("steps=2 hang_first finish")
    with proxied(site.postgres.socket, tmp_path) as proxy:
        cut_off = site.fleet.worker("cut-off", database_url=through(proxy, site))
        until(lambda: site.has_noted(job, "hanging"))
        proxy.set(how)
        site.fleet.worker("other")
        site.all_end()
        proxy.set("pass")
        until(lambda: re.search("job.(lost|abandoned)|held=False", site.fleet.log("cut-off")))
        assert not runs(site.pids(job)[0])
        assert cut_off.poll() is None
    assert "other" in (site.row(job).worker or "") and site.row(job).attempt == 2


def through(proxy: Proxy, site: Site) -> str:
    """The database's URL by way of the proxy, which lies in another folder under the same name."""
    assert isinstance(proxy.address, Path)
    url = make_url(site.settings.db_url).set(query={"host": str(proxy.address.parent)})
    return url.render_as_string(hide_password=False)


@pytest.mark.faults_only
@pytest.mark.fault("F21")
@pytest.mark.parametrize("reaches_server", [True, False], ids=["commit_arrives", "commit_is_lost"])
def test_a_connection_that_breaks_at_the_commit_of_a_success_makes_one_success(
    site: Site, tmp_path: Path, reaches_server: bool
) -> None:
    assert site.postgres is not None
    site.fleet.controller()
    job = site.submit("steps=2 finish")
    with proxied(site.postgres.socket, tmp_path) as proxy:
        proxy.reset_at_commit(b"succeeded", reaches_server=reaches_server)
        site.fleet.worker("one", database_url=through(proxy, site))
        site.all_end()
        after = site.submit("finish")
        site.all_end()
        assert proxy.resets == 1
    assert (len(site.pids(job)), len(site.pids(after))) == (1, 1)


@pytest.mark.faults_only
@pytest.mark.fault("F22")
def test_eight_processes_write_to_one_sqlite_file_and_none_is_refused(sqlite_url: str) -> None:
    db.migrate(sqlite_url)
    command = [sys.executable, "-m", "tests.faults.hammer", sqlite_url, "15"]
    hammers = [
        subprocess.Popen([*command, f"hammer-{number}"], stdout=subprocess.PIPE, text=True) for number in range(8)
    ]
    finished = sum(int(hammer.communicate()[0]) for hammer in hammers)
    assert [hammer.returncode for hammer in hammers] == [0] * 8
    engine = db.make_engine(sqlite_url)
    with db.reading(engine) as s:
        assert s.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        assert s.execute(text("SELECT count(*) FROM jobs WHERE status = 'succeeded'")).scalar_one() == finished > 0
    assert list(broken_histories(engine)) == []
    engine.dispose()
