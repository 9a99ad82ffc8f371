"""Wall clocks that are wrong by a year or an hour change nothing: the database's clock decides."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobs import db
from jobs.status import Status
from tests.faults.site import Site
from tests.worker.fleet import QUICK
from tests.worker.service import until

YEAR_S, HOUR_S = 365 * 86_400, 3_600


@pytest.mark.faults_only
@pytest.mark.fault("F39")
@pytest.mark.parametrize(
    "controller_s", [YEAR_S, -HOUR_S], ids=["controller_a_year_ahead", "controller_an_hour_behind"]
)
def test_a_worker_a_year_ahead_keeps_its_lease_and_jobs_keep_their_order(site: Site, controller_s: int) -> None:
    first, second = site.submit("wait_for=go steps=1 finish"), site.submit("steps=1 finish")
    site.fleet.worker("ahead", clock_s=YEAR_S)
    site.fleet.controller(clock_s=controller_s)
    until(lambda: site.row(first).status == Status.RUNNING)

    def held_for_three_leases() -> bool:
        row = site.row(first)
        assert row.started_at is not None and row.heartbeat_at is not None
        return row.heartbeat_at - row.started_at > timedelta(seconds=3 * QUICK["lease_s"])

    until(held_for_three_leases)
    (site.folder(first) / "go").touch()
    site.all_end()
    rows = [site.row(first), site.row(second)]
    assert [(row.attempt, row.fence) for row in rows] == [(1, 1), (1, 1)]
    assert rows[1].started_at is not None and rows[0].finished_at is not None
    assert rows[1].started_at >= rows[0].finished_at
    with db.reading(site.engine) as s:
        now = db.db_now(s)
    assert all(abs(now - row.updated_at) < timedelta(minutes=2) for row in rows)


@pytest.mark.faults_only
@pytest.mark.fault("F39")
def test_an_api_an_hour_behind_queues_jobs_behind_those_of_before(site: Site) -> None:
    before = site.submit("finish")
    site.start_api(clock_s=-HOUR_S)
    after = site.post().json()["id"]
    last = site.submit("finish")
    assert [before, after, last] == sorted([last, after, before])
    assert abs(site.row(after).created_at - site.row(before).created_at) < timedelta(minutes=2)
    site.fleet.worker("one", clock_s=-HOUR_S)
    site.fleet.controller(clock_s=-HOUR_S)
    site.all_end()
    started = [site.row(job).started_at for job in (before, after, last)]
    assert started == sorted(started, key=str)
