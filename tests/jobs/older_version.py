"""What processes of the version before did to the tables, as the SQL they sent: they know no column that came later."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

LIFETIME = {"sqlite": "datetime('now', '+30 seconds')", "postgresql": "clock_timestamp() + interval '30 seconds'"}


@dataclass
class OlderVersion:
    """API and worker of the tables of 0001."""

    engine: Engine

    def submit(self, job_id: str, labels: dict[str, str] | None = None, **columns: object) -> None:
        values = {
            "id": job_id,
            "name": "older",
            "kind": "train",
            "spec": json.dumps({"kind": "train", "name": "older"}),
            "spec_digest": "d" * 64,
            "labels": json.dumps(labels or {}),
            "status": "queued",
            "attempt": 1,
            "max_attempts": 3,
            "releases": 0,
            "fence": 0,
            "run_seconds": 0.0,
            "last_seq": 0,
            "events_offset": 0,
            "tracking": "pending",
            "tracking_seq": 0,
            **columns,
        }
        times = ("created_at", "queued_at", "updated_at")
        sql = (
            f"INSERT INTO jobs ({', '.join([*values, *times])}) "
            f"VALUES ({', '.join(f':{name}' for name in values)}, {', '.join('CURRENT_TIMESTAMP' for _ in times)})"
        )
        with self._writing() as connection:
            connection.execute(text(sql), values)
            self._record(connection, job_id, None, str(values["status"]))
            if values["status"] == "queued":
                self._announce(connection, job_id)

    def claim(self, job_id: str) -> int | None:
        """The fence of the claim; None where the job is not there to be claimed."""
        lease = LIFETIME[self.engine.dialect.name]
        with self._writing() as connection:
            fence = connection.scalar(
                text(
                    "UPDATE jobs SET status = 'running', reason = NULL, fence = fence + 1, worker = 'older', "
                    f"lease_expires_at = {lease}, heartbeat_at = CURRENT_TIMESTAMP, last_seq = last_seq + 1, "
                    "started_at = CURRENT_TIMESTAMP WHERE id = :id AND status = 'queued' RETURNING fence"
                ),
                {"id": job_id},
            )
            if fence is not None:
                self._record(connection, job_id, "queued", "running")
                connection.execute(text("DELETE FROM outbox WHERE job_id = :id"), {"id": job_id})
        return fence

    def beat(self, job_id: str, fence: int) -> str | None:
        sql = (
            f"UPDATE jobs SET lease_expires_at = {LIFETIME[self.engine.dialect.name]}, "
            "heartbeat_at = CURRENT_TIMESTAMP WHERE id = :id AND fence = :fence AND status = 'running' RETURNING status"
        )
        with self._writing() as connection:
            return connection.scalar(text(sql), {"id": job_id, "fence": fence})

    def release(self, job_id: str, fence: int) -> bool:
        return self._end(job_id, fence, "queued", "released", "fence = fence + 1, worker = NULL")

    def finish(self, job_id: str, fence: int) -> bool:
        return self._end(
            job_id, fence, "succeeded", "finished", "finished_at = CURRENT_TIMESTAMP, result_fence = fence"
        )

    def _end(self, job_id: str, fence: int, status: str, reason: str, more: str) -> bool:
        sql = (
            f"UPDATE jobs SET status = :status, reason = :reason, last_seq = last_seq + 1, lease_expires_at = NULL, "
            f"{more} WHERE id = :id AND fence = :fence AND status = 'running' RETURNING id"
        )
        with self._writing() as connection:
            held = connection.scalar(text(sql), {"id": job_id, "fence": fence, "status": status, "reason": reason})
            if held is not None:
                self._record(connection, job_id, "running", status)
                if status == "queued":
                    self._announce(connection, job_id)
        return held is not None

    def _writing(self) -> Connection:
        return self.engine.execution_options(dsd_write=True).begin()

    def _record(self, connection: Connection, job_id: str, before: str | None, to: str) -> None:
        sql = (
            "INSERT INTO job_events (job_id, seq, at, type, data) SELECT id, last_seq, CURRENT_TIMESTAMP, 'status', "
            ":data FROM jobs WHERE id = :id"
        )
        if self.engine.dialect.name == "postgresql":
            sql = sql.replace(":data", "CAST(:data AS json)")
        connection.execute(text(sql), {"id": job_id, "data": json.dumps({"from": before, "to": to})})

    def _announce(self, connection: Connection, job_id: str) -> None:
        sql = (
            "INSERT INTO outbox (job_id, attempt, created_at, next_try_at, tries) "
            "SELECT id, attempt, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 0 FROM jobs WHERE id = :id"
        )
        connection.execute(text(sql), {"id": job_id})
