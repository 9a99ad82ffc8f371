"""Queueing a job for a request, once for each Idempotency-Key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from api.deps import Database, SettingsOf
from api.job_view import job_view
from api.schemas import Job
from dsd_core.fault_points import fault_point
from dsd_core.spec import JobSpec
from jobs import db, store
from jobs.tables import JobRow

POLL_S = "2"  # how soon a submitted job is worth looking at again
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Repeating a request with its key makes no second job.",
    ),
]


class Submission:
    """What one request needs to queue a job: the database, its key, and the headers of its answer."""

    def __init__(
        self, engine: Database, settings: SettingsOf, response: Response, idempotency_key: IdempotencyKey = None
    ) -> None:
        self.engine, self.settings, self.headers, self.key = engine, settings, response.headers, idempotency_key

    def once(self, fingerprint: str, make: Callable[[], JobSpec], **lineage: str) -> Job:
        """Queue the job that `make` gives, or find the one that this key has made from a request with this fingerprint.

        The old one is not checked again, for the repeat of a request must get what it missed.
        """
        row, created = self._replayed(fingerprint), False
        if row is None:
            row, created = self._queue(make(), fingerprint, lineage)
        with db.reading(self.engine) as s:
            job = job_view(s, row, self.settings)
        self.headers["Location"] = f"/api/v1/jobs/{job.id}"
        self.headers["Retry-After"] = POLL_S
        if not created:
            self.headers["Idempotency-Replayed"] = "true"
        return job

    def _replayed(self, fingerprint: str) -> JobRow | None:
        if self.key is None:
            return None
        with db.reading(self.engine) as s:
            return store.replayed(s, self.key, fingerprint)

    def _queue(self, spec: JobSpec, fingerprint: str, lineage: dict[str, str]) -> tuple[JobRow, bool]:
        with db.begin(self.engine) as s:
            made = store.submit(
                s,
                spec,
                max_attempts=self.settings.max_attempts,
                idempotency_key=self.key,
                fingerprint=fingerprint,
                **lineage,
            )
        fault_point("api.before_answer")
        return made


SubmissionOf = Annotated[Submission, Depends()]


def fingerprint_of(*parts: Any) -> str:
    """Of a request that is no whole spec: equal where all its parts are."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
