"""All reads and writes of job state. Each function takes a Session the caller has begun: `jobs.db.begin`, `reading`.

    submission   people: submit, replayed
    reading      people: get, list_page, queue_position, events_after, request_cancel
    claims       workers: claim, beat, append_events, restart_events, finish, release; controller: expire_leases
    outbox       controller: due_outbox, mark_sent, mark_failed, redispatch
    tracking     controller: tracking_due, set_tracking; registered models and their aliases
    retention    controller and people: what may be deleted, and that it was
    moves        under them: the one place where a status moves

Import from here: `from jobs import store`.
"""

from jobs.store.claims import Claim, append_events, beat, claim, expire_leases, finish, release, restart_events
from jobs.store.outbox import due_outbox, mark_failed, mark_sent, redispatch
from jobs.store.reading import JobNotFound, NotCancellable, events_after, get, list_page, queue_position, request_cancel
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
from jobs.store.submission import IdempotencyConflict, replayed, submit
from jobs.store.tracking import (
    add_model_version,
    get_model_version,
    list_models,
    model_aliases,
    set_aliases,
    set_tracking,
    tracking_due,
)

__all__ = [
    "Claim",
    "IdempotencyConflict",
    "JobNotFound",
    "Kept",
    "NotCancellable",
    "Part",
    "add_model_version",
    "append_events",
    "beat",
    "claim",
    "due_outbox",
    "events_after",
    "expire_leases",
    "finish",
    "get",
    "get_model_version",
    "in_use",
    "installation",
    "is_job_id",
    "kept_jobs",
    "list_models",
    "list_page",
    "mark_failed",
    "mark_gone",
    "mark_sent",
    "model_aliases",
    "model_of",
    "queue_position",
    "redispatch",
    "release",
    "replayed",
    "request_cancel",
    "restart_events",
    "set_aliases",
    "set_tracking",
    "submit",
    "tracking_due",
    "unmark_student",
]
