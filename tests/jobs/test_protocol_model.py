"""The protocol keeps its promises in every state that faults can bring it into, and the checker would see if not."""

from __future__ import annotations

from typing import ClassVar

import pytest

from jobs.status import HELD, MOVES, OUTCOMES, Reason, Status
from tests.jobs.protocol_checker import Bounds, explore
from tests.jobs.protocol_model import Job, Jobs, Message, Protocol

SMALL = Bounds(steps=1, faults=1)


class Design(Protocol):
    max_releases: ClassVar[int] = 1  # the second one costs an attempt


def check_promises(bounds: Bounds, states: int) -> None:
    found = explore(Design(), bounds)
    assert found.broken is None
    assert (found.stuck, found.stuck_at) == (0, None)
    assert found.moves == MOVES
    assert found.states >= states


@pytest.mark.slow
def test_no_order_of_faults_breaks_a_promise_and_from_everywhere_an_end_is_reached() -> None:
    check_promises(Bounds(), states=100_000)


@pytest.mark.faults_only
@pytest.mark.fault("F8", "F16")
def test_nor_do_more_faults_and_more_wishes() -> None:
    check_promises(Bounds(steps=1, wishes=2), states=200_000)


class NoFenceCheck(Design):
    def holds(self, job: Job, fence: int) -> bool:
        return job.status in HELD


class NoNewFence(Design):
    def claim(self, job: Job) -> Job | None:
        claimed = super().claim(job)
        return claimed and claimed._replace(fence=job.fence)

    def next_fence(self, job: Job) -> int:
        return job.fence


class RunningJobsAreClaimed(Design):
    def claimable(self, job: Job) -> bool:
        return super().claimable(job) or job.status == Status.RUNNING


class BackOffIsIgnored(Design):
    def claimable(self, job: Job) -> bool:
        return super().claimable(job._replace(backing_off=False))


class SuccessIgnoresCancel(Design):
    def where_to(self, job: Job, reason: Reason) -> tuple[Status, dict[str, int]]:
        outcome = OUTCOMES[reason].status
        return (outcome, {}) if outcome is Status.SUCCEEDED else super().where_to(job, reason)


class TriesAreNotCounted(Design):
    def where_to(self, job: Job, reason: Reason) -> tuple[Status, dict[str, int]]:
        return super().where_to(job._replace(max_attempts=job.attempt + 1), reason)


class LiveLeasesExpire(Design):
    def may_expire(self, job: Job) -> bool:
        return True


class NoLeaseExpires(Design):
    def expire(self, job: Job) -> Job | None:
        return None


class NoRedispatch(Design):
    def redispatch(self, job: Job) -> Job | None:
        return None


class FurtherTriesAreNotAnnounced(Design):
    def announced(self, job: Job) -> Message:
        return job.message if job.started else super().announced(job)


class ClaimedJobsStayInLine(Design):
    def settle(self, job: Job) -> Job:
        settled = super().settle(job)
        return settled._replace(line=job.line, message=job.message) if job.status == Status.RUNNING else settled


class PausedJobsStayInLine(Design):
    def settle(self, job: Job) -> Job:
        return super().settle(job._replace(paused=False))._replace(paused=job.paused)


class PauseIsForgotten(Design):
    def pause_kept(self, job: Job) -> Job:
        return job._replace(request=None)


class StopIsForgotten(Design):
    def end_claim(self, job: Job, by: int, reason: Reason, *, backs_off: bool = True) -> Job:
        return super().end_claim(job, by, reason, backs_off=backs_off)._replace(request=None)


class NeedsAreNotCountedAgain(Design):
    def told_of_end(self, job: Job, jobs: Jobs, end: Status) -> Job:
        return job if end == Status.SUCCEEDED else super().told_of_end(job, jobs, end)


class FailedNeedsAreNotTold(Design):
    def told_of_end(self, job: Job, jobs: Jobs, end: Status) -> Job:
        return super().told_of_end(job, jobs, end) if end == Status.SUCCEEDED else job


class OneCheckpointFile(Design):
    def newest_checkpoint(self, before: int, step: int) -> int:
        return step


BROKEN = {
    NoFenceCheck: "from a claim that was lost",
    NoNewFence: "two workers hold one job",
    RunningJobsAreClaimed: "a live lease was stolen",
    BackOffIsIgnored: "before its back-off had ended",
    SuccessIgnoresCancel: "succeeded after its cancel was accepted",
    TriesAreNotCounted: "tried too often",
    LiveLeasesExpire: "a live lease was stolen",
    FurtherTriesAreNotAnnounced: "in no line or not announced",
    ClaimedJobsStayInLine: "or one that cannot is",
    PausedJobsStayInLine: "or one that cannot is",
    PauseIsForgotten: "a pause was forgotten",
    StopIsForgotten: "a stop was forgotten",
    NeedsAreNotCountedAgain: "in no line or not announced",
    FailedNeedsAreNotTold: "waits for one that did not succeed",
    OneCheckpointFile: "a checkpoint was lost",
}


@pytest.mark.parametrize("bug", BROKEN, ids=lambda bug: bug.__name__)
def test_a_bug_planted_in_the_protocol_breaks_a_promise(bug: type[Design]) -> None:
    found = explore(bug(), Bounds())
    assert found.broken is not None and BROKEN[bug] in found.broken


@pytest.mark.parametrize("bug", [NoLeaseExpires, NoRedispatch])
def test_without_the_reconciler_jobs_are_stuck(bug: type[Design]) -> None:
    found = explore(bug(), SMALL)
    assert found.broken is None and found.stuck > 0
