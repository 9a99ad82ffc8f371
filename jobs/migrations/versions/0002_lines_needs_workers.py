"""Lines to wait in, jobs that need others, requests, workers, webhooks, and labels that can be looked up.

No table is copied: on SQLite that would delete the history with the old table. New columns have defaults of the
database, so that processes of the version before can go on while this one is rolled out.
"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

def upgrade() -> None:
    for column in _new_columns():
        op.add_column("jobs", column)
    _create_tables()
    _stand_in_line()
    _index_labels()
    op.create_index(op.f("ix_jobs_line_id"), "jobs", ["line", "id"], unique=False)
    op.create_index(op.f("ix_jobs_kind_id"), "jobs", ["kind", "id"], unique=False)
    op.create_index(op.f("ix_jobs_group_name_id"), "jobs", ["group_name", "id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_group_name_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_kind_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_line_id"), table_name="jobs")
    _announce_all()
    for table in ("workers", "webhooks", "job_needs", "job_labels"):
        op.drop_table(table)
    for column in _new_columns():
        op.drop_column("jobs", column.name)


def _new_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("retry_of", sa.String(length=40), nullable=True),
        sa.Column("cloned_from", sa.String(length=40), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("group_name", sa.String(length=80), nullable=False, server_default="default"),
        sa.Column("line", sa.String(length=120), nullable=True),
        sa.Column("needs_left", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("request", sa.String(length=20), nullable=True),
        sa.Column("crash_step", sa.BigInteger(), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
    ]


def _create_tables() -> None:
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_labels")),
    )
    op.create_index(op.f("ix_job_labels_key_value_job_id"), "job_labels", ["key", "value", "job_id"], unique=False)
    op.create_table(
        "job_needs",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("need_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_needs_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["need_id"], ["jobs.id"], name=op.f("fk_job_needs_need_id")),
        sa.PrimaryKeyConstraint("job_id", "need_id", name=op.f("pk_job_needs")),
    )
    op.create_index(op.f("ix_job_needs_need_id"), "job_needs", ["need_id"], unique=False)
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhooks_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_webhooks_delivered_at_next_try_at"), "webhooks", ["delivered_at", "next_try_at"], unique=False
    )
    op.create_index(op.f("ix_webhooks_job_id"), "webhooks", ["job_id"], unique=False)
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("device", sa.String(length=20), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("memory_gib", sa.Double(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("drain", sa.String(length=20), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def _stand_in_line() -> None:
    """Jobs of before are of the default group and demand nothing. `jobs.store.queueing.line_of` as it is today."""
    demand = json.dumps(
        {"device": "any", "labels": [], "memory_gib": None, "processes": 1}, sort_keys=True, separators=(",", ":")
    )
    line = f"100 default {hashlib.sha256(demand.encode()).hexdigest()[:16]}"
    op.execute(sa.text("UPDATE jobs SET line = :line WHERE status = 'queued'").bindparams(line=line))


def _index_labels() -> None:
    """In one statement: a million jobs take seconds, in which nobody else can write."""
    each = "json_each" if op.get_bind().dialect.name == "sqlite" else "json_each_text"
    op.execute(
        f"INSERT INTO job_labels (job_id, key, value) SELECT jobs.id, label.key, label.value "
        f"FROM jobs CROSS JOIN {each}(jobs.labels) AS label"
    )


def _announce_all() -> None:
    """The older code has no jobs that wait for anything: paused ones and those that need others become claimable."""
    op.execute(
        "INSERT INTO outbox (job_id, attempt, created_at, next_try_at, tries) "
        "SELECT id, attempt, updated_at, updated_at, 0 FROM jobs "
        "WHERE status = 'queued' AND id NOT IN (SELECT job_id FROM outbox)"
    )
