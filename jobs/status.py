"""What a job can be, why it ended, and which moves are legal. A new kind of failure adds a Reason, never a Status.

    queued ──claim──> running ──finish──> succeeded | failed
     │ │ ^              │  │
     │ │ └─retry/release┘  └─cancel asked─> cancelling ──> cancelled
     │ └─a job it needs failed────────────> failed
     └───cancel asked─────────────────────> cancelled

Asking is not a state of its own beyond `cancelling`: once a cancel is accepted the job can no longer succeed. A job
that is paused, waits for another or for the time of its next try is queued all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
HELD = frozenset({Status.RUNNING, Status.CANCELLING})  # a worker has a claim on the job

MOVES: frozenset[tuple[Status, Status]] = frozenset(
    {
        (Status.QUEUED, Status.RUNNING),  # claim
        (Status.QUEUED, Status.CANCELLED),  # cancel before anything started
        (Status.QUEUED, Status.FAILED),  # a job it needs did not succeed
        (Status.RUNNING, Status.QUEUED),  # retry, or release on a worker's shutdown
        (Status.RUNNING, Status.CANCELLING),  # cancel asked
        (Status.RUNNING, Status.SUCCEEDED),
        (Status.RUNNING, Status.FAILED),
        (Status.CANCELLING, Status.CANCELLED),
    }
)


class Request(StrEnum):
    """What someone asks of a running job. It stands on the row until the worker that has the job obeys."""

    CANCEL = "cancel"
    PAUSE = "pause"  # write a checkpoint and wait in the queue until it is resumed
    STOP = "stop"  # end now, and keep the best student so far


class Drain(StrEnum):
    """How a worker is emptied; either way it takes no further job."""

    AFTER_JOB = "after_job"  # the job it has goes on to its end
    NOW = "now"  # the job it has is given back with a checkpoint


class Reason(StrEnum):
    """Why a job is where it is. Values equal `DsdError.code` where a training process names the reason."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped_early"  # on request; the best student so far is the result
    NOTHING_TO_KEEP = "nothing_to_keep"  # asked to stop before there was a student
    CANCELLED_BY_USER = "cancelled_by_user"
    RELEASED = "released"  # the worker was shut down in good order; the attempt is not consumed
    PAUSED = "paused"  # on request; the attempt is not consumed
    NEED_FAILED = "need_failed"  # a job this one needs did not succeed
    INVALID_SPEC = "invalid_spec"
    INVALID_DATA = "invalid_data"
    INVALID_WEIGHTS = "invalid_weights"
    WEAK_TEACHER = "weak_teacher"
    DIVERGED = "diverged"
    MAX_RUNTIME = "max_runtime"
    STORAGE = "storage"
    OUT_OF_MEMORY = "out_of_memory"
    OOM_SUSPECTED = "oom_suspected"  # SIGKILL from outside: most likely the kernel's, for want of memory
    CRASHED = "crashed"  # the training process died of another signal that we did not send
    STALLED = "stalled"  # the training process was alive and did nothing
    INTERNAL = "internal"
    WORKER_LOST = "worker_lost"  # the lease ran out


@dataclass(frozen=True)
class Outcome:
    """What a reason makes of a running job."""

    status: Status
    retry: bool = False
    """Try again while attempts remain."""
    backoff: float = 0.0
    """The second try waits this many times the back-off, the third twice as long, and so on."""
    once_a_step: bool = False
    """Where it strikes twice at the same step of training, a third try would end there too."""


OUTCOMES: dict[Reason, Outcome] = {
    Reason.FINISHED: Outcome(Status.SUCCEEDED),
    Reason.STOPPED_EARLY: Outcome(Status.SUCCEEDED),
    Reason.NOTHING_TO_KEEP: Outcome(Status.FAILED),
    Reason.CANCELLED_BY_USER: Outcome(Status.CANCELLED),
    Reason.PAUSED: Outcome(Status.QUEUED),
    Reason.RELEASED: Outcome(Status.FAILED, retry=True),  # where it was released too often to be free
    Reason.NEED_FAILED: Outcome(Status.FAILED),
    Reason.INVALID_SPEC: Outcome(Status.FAILED),
    Reason.INVALID_DATA: Outcome(Status.FAILED),
    Reason.INVALID_WEIGHTS: Outcome(Status.FAILED),
    Reason.WEAK_TEACHER: Outcome(Status.FAILED),
    Reason.DIVERGED: Outcome(Status.FAILED),
    Reason.MAX_RUNTIME: Outcome(Status.FAILED),
    Reason.STORAGE: Outcome(Status.FAILED, retry=True, backoff=6.0),  # a disk is not emptied in a second
    Reason.OUT_OF_MEMORY: Outcome(Status.FAILED),
    Reason.OOM_SUSPECTED: Outcome(Status.FAILED, retry=True, backoff=1.0, once_a_step=True),
    Reason.CRASHED: Outcome(Status.FAILED, retry=True, backoff=1.0, once_a_step=True),
    Reason.STALLED: Outcome(Status.FAILED, retry=True, backoff=1.0),
    Reason.INTERNAL: Outcome(Status.FAILED, retry=True, backoff=1.0),
    Reason.WORKER_LOST: Outcome(Status.FAILED, retry=True),
}
LONGEST_BACKOFF_S = 600.0


def backoff_s(reason: Reason, attempt: int, base_s: float) -> float:
    """How long a job waits after `attempt` (from 1) ended for this reason."""
    return min(OUTCOMES[reason].backoff * base_s * 2.0 ** (attempt - 1), LONGEST_BACKOFF_S)
