"""The protocol of `jobs.store` once more, as pure functions: what each transaction makes of a job.

protocol_checker.py lets it meet every order of crashes, losses and late finishers; test_protocol.py holds the real
store against it, step by step. Where the end of a claim leads is the code's own table: `status.OUTCOMES`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from jobs.status import HELD, OUTCOMES, TERMINAL, Reason, Request, Status
from jobs.store.claims import MAX_RELEASES


class Lease(StrEnum):
    NONE = "none"
    ALIVE = "alive"
    LAPSED = "lapsed"


class Message(StrEnum):
    """The outbox row of a job."""

    NONE = "none"
    DUE = "due"
    TAKEN = "taken"  # by a relay that has not said what became of it
    SENT = "sent"


class Job(NamedTuple):
    """What the protocol reads and writes of a JobRow and its OutboxRow. `needs` are places in the tuple of all jobs."""

    max_attempts: int
    needs: tuple[int, ...] = ()
    needs_left: int = 0
    status: Status = Status.QUEUED
    attempt: int = 1
    releases: int = 0
    fence: int = 0
    lease: Lease = Lease.NONE
    request: Request | None = None
    paused: bool = False
    backing_off: bool = False
    started: bool = False
    told: int = 0  # the step of the newest progress in the history
    crash_step: int | None = None
    result_fence: int | None = None
    line: bool = False
    message: Message = Message.NONE


Jobs = tuple[Job, ...]


class Protocol:
    """Each function answers None where it changes nothing. A planted bug is a subclass with one rule broken."""

    max_releases = MAX_RELEASES

    # Workers

    def claim(self, job: Job) -> Job | None:
        if not self.claimable(job):
            return None
        return self.settle(
            job._replace(status=Status.RUNNING, fence=job.fence + 1, lease=Lease.ALIVE, started=True, backing_off=False)
        )

    def claimable(self, job: Job) -> bool:
        return job.line and job.status == Status.QUEUED and not job.backing_off

    def holds(self, job: Job, fence: int) -> bool:
        return job.fence == fence and job.status in HELD

    def beat(self, job: Job, fence: int) -> Job | None:
        return job._replace(lease=Lease.ALIVE) if self.holds(job, fence) else None

    def tell(self, job: Job, fence: int, step: int) -> Job | None:
        """Copy a progress event into the history."""
        return job._replace(told=step) if self.holds(job, fence) else None

    def finish(self, job: Job, fence: int, reason: Reason, *, backs_off: bool = True) -> Job | None:
        if not self.holds(job, fence):
            return None
        return self.end_claim(job, fence, reason, backs_off=backs_off)

    def release(self, job: Job, fence: int, reason: Reason) -> Job | None:
        if not self.holds(job, fence):
            return None
        taken_back = reason is Reason.PAUSED and job.request != Request.PAUSE
        return self.end_claim(job, fence, Reason.RELEASED if taken_back else reason)

    def end_claim(self, job: Job, by: int, reason: Reason, *, backs_off: bool = True) -> Job:
        to, spent = self.where_to(job, reason)
        strikes = OUTCOMES[reason].once_a_step
        ended = job._replace(status=to, lease=Lease.NONE, crash_step=job.told if strikes else job.crash_step)
        if to is Status.SUCCEEDED:
            return ended._replace(result_fence=by, request=None)
        ended = ended._replace(fence=self.next_fence(job))
        if to is not Status.QUEUED:
            return ended._replace(request=None)
        ended = ended._replace(**spent)
        if job.request == Request.PAUSE:
            return self.settle(self.pause_kept(ended))
        return self.settle(ended._replace(backing_off=backs_off and OUTCOMES[reason].backoff > 0))

    def where_to(self, job: Job, reason: Reason) -> tuple[Status, dict[str, int]]:
        """The next status of a held job, and what that costs it."""
        if job.status == Status.CANCELLING:
            return Status.CANCELLED, {}
        if reason is Reason.RELEASED and job.releases < self.max_releases:
            return Status.QUEUED, {"releases": job.releases + 1}
        outcome = OUTCOMES[reason]
        if not outcome.retry:
            return outcome.status, {}
        again = job.attempt < job.max_attempts and not (outcome.once_a_step and job.crash_step == job.told)
        return (Status.QUEUED, {"attempt": job.attempt + 1}) if again else (outcome.status, {})

    def next_fence(self, job: Job) -> int:
        return job.fence + 1

    def pause_kept(self, job: Job) -> Job:
        return job._replace(paused=True, request=None)

    def newest_checkpoint(self, before: int, step: int) -> int:
        """Names of checkpoints hold step and fence, so a late process writes over none; the furthest is taken."""
        return max(before, step)

    # People

    def cancel(self, job: Job) -> Job | None:
        if job.status == Status.QUEUED:
            return self.settle(job._replace(status=Status.CANCELLED, request=None))
        if job.status == Status.RUNNING:
            return job._replace(status=Status.CANCELLING, request=Request.CANCEL)
        return None

    def pause(self, job: Job) -> Job | None:
        if job.request is not None or job.paused:
            return None
        if job.status == Status.QUEUED:
            return self.settle(job._replace(paused=True))
        return job._replace(request=Request.PAUSE) if job.status == Status.RUNNING else None

    def resume(self, job: Job) -> Job | None:
        paused = job.paused or job.request == Request.PAUSE
        if not paused or job.status not in (Status.QUEUED, Status.RUNNING):
            return None
        return self.settle(job._replace(paused=False, request=None))

    def stop(self, job: Job) -> Job | None:
        if not job.started or job.request is not None or job.status not in (Status.QUEUED, Status.RUNNING):
            return None
        return self.settle(job._replace(paused=False, request=Request.STOP))

    # The controller

    def expire(self, job: Job) -> Job | None:
        if job.status not in HELD or not self.may_expire(job):
            return None
        return self.end_claim(job, job.fence, Reason.WORKER_LOST)

    def may_expire(self, job: Job) -> bool:
        return job.lease != Lease.ALIVE

    def take_message(self, job: Job) -> Job | None:
        due = job.message == Message.DUE and not job.backing_off
        return job._replace(message=Message.TAKEN) if due else None

    def mark_sent(self, job: Job) -> Job | None:
        return None if job.message == Message.NONE else job._replace(message=Message.SENT)

    def redispatch(self, job: Job) -> Job | None:
        return job._replace(message=Message.DUE) if job.message == Message.SENT else None

    # What follows from a change, in the same transaction

    def settle(self, job: Job) -> Job:
        """In its line and announced where it can be claimed, neither where not."""
        waits = job.status == Status.QUEUED and not job.paused and job.needs_left == 0
        if not waits:
            return job._replace(line=False, message=Message.NONE)
        return job._replace(line=True, message=self.announced(job))

    def announced(self, job: Job) -> Message:
        return Message.DUE if job.message == Message.NONE else job.message

    def put(self, jobs: Jobs, place: int, job: Job) -> Jobs:
        """All jobs once this one has become `job`, and those that need it were told of its end."""
        jobs = (*jobs[:place], job, *jobs[place + 1 :])
        if job.status not in TERMINAL:
            return jobs
        for other_place, other in enumerate(jobs):
            if place in other.needs and other.status == Status.QUEUED:
                jobs = self.put(jobs, other_place, self.told_of_end(other, jobs, job.status))
        return jobs

    def told_of_end(self, job: Job, jobs: Jobs, end: Status) -> Job:
        if end == Status.SUCCEEDED:
            return self.settle(job._replace(needs_left=needs_left(jobs, job)))
        return self.settle(job._replace(status=Status.FAILED))

    def submitted(self, jobs: Jobs, max_attempts: int, needs: tuple[int, ...] = ()) -> Jobs:
        job = Job(max_attempts, needs)
        return (*jobs, self.settle(job._replace(needs_left=needs_left(jobs, job))))


def needs_left(jobs: Jobs, job: Job) -> int:
    return sum(jobs[need].status != Status.SUCCEEDED for need in job.needs)
