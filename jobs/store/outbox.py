"""Messages to the broker. They are written with the status (`queueing.settle`) and published after the commit.

A job that can be claimed has one row, others have none.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from jobs.db import db_now
from jobs.store.workers import idle_workers
from jobs.tables import OutboxRow

REDISPATCH_ALL = 20
RELAY_HOLD_S = 10.0  # a row handed to a relay is not handed to another for this long


def due_outbox(s: Session, limit: int) -> list[OutboxRow]:
    """Messages to publish now, oldest first. They are not handed out again for RELAY_HOLD_S.

    Commit, publish, then call `mark_sent` or `mark_failed`. A relay that dies between makes a duplicate; `claim`
    refuses those.
    """
    now = db_now(s)
    due = select(OutboxRow).where(OutboxRow.sent_at.is_(None), OutboxRow.next_try_at <= now)
    rows = list(s.scalars(due.order_by(OutboxRow.id).limit(limit).with_for_update(skip_locked=True)))
    for row in rows:
        row.next_try_at = now + timedelta(seconds=RELAY_HOLD_S)
    s.flush()
    return rows


def mark_sent(s: Session, ids: Collection[int]) -> None:
    _update_outbox(s, OutboxRow.id.in_(ids), sent_at=db_now(s), tries=OutboxRow.tries + 1)


def mark_failed(s: Session, ids: Collection[int], delay_s: float) -> None:
    """Try these messages again after `delay_s`."""
    later = db_now(s) + timedelta(seconds=delay_s)
    _update_outbox(s, OutboxRow.id.in_(ids), next_try_at=later, tries=OutboxRow.tries + 1)


def redispatch(s: Session, after_s: float, *, fresh_s: float) -> int:
    """Announce again the jobs nobody has claimed; says how many.

    Those whose message was sent over `after_s` ago while a worker is idle, for it should have come; the others after
    REDISPATCH_ALL times that. A worker counts as idle when it was heard of within `fresh_s` and has no job.
    """
    now = db_now(s)
    wait_s = after_s if idle_workers(s, now, fresh_s) else REDISPATCH_ALL * after_s
    lost = OutboxRow.sent_at < now - timedelta(seconds=wait_s)
    return _update_outbox(s, lost, sent_at=None, next_try_at=now)


def _update_outbox(s: Session, where: ColumnElement[bool], **values: Any) -> int:
    changed = update(OutboxRow).where(where).values(**values).returning(OutboxRow.id)
    return len(s.execute(changed, execution_options={"synchronize_session": False}).all())
