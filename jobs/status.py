"""What a job can be, why it ended, and which moves are legal. A new kind of failure adds a Reason, never a Status.

    queued ──claim──> running ──finish──> succeeded | failed
      │ ^               │  │
      │ └─retry/release─┘  └─cancel asked─> cancelling ──> cancelled
      └─cancel asked──────────────────────────────────────> cancelled

Asking is not a state of its own beyond `cancelling`: once a cancel is accepted the job can no longer succeed.
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

MOVES: frozenset[tuple[Status, Status]] = frozenset(
    {
        (Status.QUEUED, Status.RUNNING),  # claim
        (Status.QUEUED, Status.CANCELLED),  # cancel before anything started
        (Status.RUNNING, Status.QUEUED),  # retry, or release on a worker's shutdown
        (Status.RUNNING, Status.CANCELLING),  # cancel asked
        (Status.RUNNING, Status.SUCCEEDED),
        (Status.RUNNING, Status.FAILED),
        (Status.CANCELLING, Status.CANCELLED),
    }
)


class Reason(StrEnum):
    """Why a job is where it is. Values equal `DsdError.code` where a training process names the reason."""

    FINISHED = "finished"
    CANCELLED_BY_USER = "cancelled_by_user"
    RELEASED = "released"  # the worker was shut down in good order; the attempt is not consumed
    INVALID_SPEC = "invalid_spec"
    INVALID_DATA = "invalid_data"
    INVALID_WEIGHTS = "invalid_weights"
    WEAK_TEACHER = "weak_teacher"
    DIVERGED = "diverged"
    MAX_RUNTIME = "max_runtime"
    STORAGE = "storage"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"  # the training process died of a signal that we did not send
    INTERNAL = "internal"
    WORKER_LOST = "worker_lost"  # the lease ran out


@dataclass(frozen=True)
class Outcome:
    """What a reason makes of a running job; `retry` while attempts remain."""

    status: Status
    retry: bool = False


OUTCOMES: dict[Reason, Outcome] = {
    Reason.FINISHED: Outcome(Status.SUCCEEDED),
    Reason.CANCELLED_BY_USER: Outcome(Status.CANCELLED),
    Reason.INVALID_SPEC: Outcome(Status.FAILED),
    Reason.INVALID_DATA: Outcome(Status.FAILED),
    Reason.INVALID_WEIGHTS: Outcome(Status.FAILED),
    Reason.WEAK_TEACHER: Outcome(Status.FAILED),
    Reason.DIVERGED: Outcome(Status.FAILED),
    Reason.MAX_RUNTIME: Outcome(Status.FAILED),
    Reason.STORAGE: Outcome(Status.FAILED, retry=True),
    Reason.OUT_OF_MEMORY: Outcome(Status.FAILED),
    Reason.CRASHED: Outcome(Status.FAILED, retry=True),
    Reason.INTERNAL: Outcome(Status.FAILED, retry=True),
    Reason.WORKER_LOST: Outcome(Status.FAILED, retry=True),
}
