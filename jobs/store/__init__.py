"""All reads and writes of job state. Each function takes a Session the caller has begun: `jobs.db.begin`, `reading`.

    submission   people: submit, replayed
    requests     people: cancel, pause, resume, stop, priority, labels, retry
    reading      people: get, list_page, heads, events_after
    estimates    people: when a job will start and end
    claims       workers: claim_next, beat, append_events, finish, release; controller: expire_leases
    waiting      people: waiting_for, needs_of
    workers      workers: register_worker, worker_beat, has_work; people: list_workers, set_drain
    outbox       controller: due_outbox, mark_sent, mark_failed, redispatch; restand
    webhooks     controller: due_webhooks, webhook_delivered, webhook_failed
    tracking     controller: tracking_due, set_tracking; registered models and their aliases
    retention    controller and people: what may be deleted, and that it was
    moves        under them: the one place where a status moves
    queueing     under them: where jobs wait, and which is next

Import from here: `from jobs import store`.
"""

from jobs.store.claims import (
    Claim,
    Heard,
    append_events,
    beat,
    claim,
    claim_next,
    expire_leases,
    finish,
    release,
    restart_events,
)
from jobs.store.estimates import Estimate, estimate
from jobs.store.moves import NeedFailedError
from jobs.store.outbox import due_outbox, mark_failed, mark_sent, redispatch
from jobs.store.queueing import has_work, positions, restand
from jobs.store.reading import Head, events_after, get, heads, list_page
from jobs.store.requests import (
    JobNotFound,
    NotCancellable,
    NotPossible,
    request_cancel,
    request_pause,
    request_resume,
    request_stop,
    retryable,
    set_labels,
    set_priority,
)
from jobs.store.retention import (
    Kept,
    Part,
    in_use,
    installation,
    is_job_id,
    kept_jobs,
    mark_gone,
    model_of,
    unmark_student,
)
from jobs.store.submission import IdempotencyConflict, NeedNotFound, replayed, submit
from jobs.store.tracking import (
    add_model_version,
    get_model_version,
    list_models,
    model_aliases,
    set_aliases,
    set_tracking,
    tracking_due,
)
from jobs.store.waiting import Waiting, needs_of, waiting_for
from jobs.store.webhooks import due_webhooks, webhook_delivered, webhook_failed
from jobs.store.workers import (
    WorkerNotFound,
    forget_workers,
    list_workers,
    live_workers,
    register_worker,
    set_drain,
    worker_beat,
)

__all__ = [
    "Claim",
    "Estimate",
    "Head",
    "Heard",
    "IdempotencyConflict",
    "JobNotFound",
    "Kept",
    "NeedFailedError",
    "NeedNotFound",
    "NotCancellable",
    "NotPossible",
    "Part",
    "Waiting",
    "WorkerNotFound",
    "add_model_version",
    "append_events",
    "beat",
    "claim",
    "claim_next",
    "due_outbox",
    "due_webhooks",
    "estimate",
    "events_after",
    "expire_leases",
    "finish",
    "forget_workers",
    "get",
    "get_model_version",
    "has_work",
    "heads",
    "in_use",
    "installation",
    "is_job_id",
    "kept_jobs",
    "list_models",
    "list_page",
    "list_workers",
    "live_workers",
    "mark_failed",
    "mark_gone",
    "mark_sent",
    "model_aliases",
    "model_of",
    "needs_of",
    "positions",
    "redispatch",
    "register_worker",
    "release",
    "replayed",
    "request_cancel",
    "request_pause",
    "request_resume",
    "request_stop",
    "restand",
    "restart_events",
    "retryable",
    "set_aliases",
    "set_drain",
    "set_labels",
    "set_priority",
    "set_tracking",
    "submit",
    "tracking_due",
    "unmark_student",
    "waiting_for",
    "webhook_delivered",
    "webhook_failed",
    "worker_beat",
]
