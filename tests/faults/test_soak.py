"""The soak in small, and its child."""

from __future__ import annotations

import pytest

from dsd_core.events import parse
from tests.faults import bare_child, soak


def test_the_bare_child_says_what_the_core_says() -> None:
    lines = (bare_child.STARTED, bare_child.PROGRESS, bare_child.FAILED, bare_child.FINISHED)
    assert [parse(line).type for line in lines] == ["started", "progress", "failed", "finished"]


@pytest.mark.faults_only
@pytest.mark.fault("F1", "F12", "F18")
def test_jobs_survive_killed_workers_an_emptied_broker_and_a_restarted_database_together() -> None:
    figures, broken = soak.run(60, pace=soak.Pace(flush_s=4, restart_s=7))
    assert broken == []
    assert (figures["submitted"], figures["lost"], figures["doubled"]) == (60, 0, 0)
    assert figures["succeeded"] + figures["failed"] + figures["cancelled"] == 60
    assert min(figures["kills"], figures["flushes"], figures["restarts"]) > 0
