"""Processes that die, hang or are stopped at the worst moment."""

from __future__ import annotations

import pytest

from tests.faults.site import Site
from tests.worker.service import runs, until


@pytest.mark.fault("F1")
def test_a_job_whose_worker_was_killed_goes_on_with_another(site: Site) -> None:
    job = site.submit("steps=2 hang_first finish")
    site.fleet.controller()
    first = site.fleet.worker("first")
    until(lambda: site.has_noted(job, "hanging"))
    first.kill()
    until(lambda: not runs(site.pids(job)[0]), 1)
    site.fleet.worker("second")
    site.all_end()
    assert site.row(job).attempt == 2
