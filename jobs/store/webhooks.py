"""Messages to the addresses that jobs name. They are written with the end of a job (`moves`), and delivered after it.

A message goes out at least once: where a controller dies between the delivery and the note of it, it goes out again,
with the same id.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db import db_now
from jobs.tables import WebhookRow

HOLD_S = 60.0  # a message handed to one controller is not handed to another for this long
FIRST_DELAY_S = 10.0
LONGEST_DELAY_S = 3600.0
GIVE_UP_S = 86_400.0


def due_webhooks(s: Session, limit: int) -> list[WebhookRow]:
    """Messages to deliver now, those that are overdue longest first. They are not handed out again for HOLD_S.

    Commit, deliver, then call `webhook_delivered` or `webhook_failed`.
    """
    now = db_now(s)
    due = select(WebhookRow).where(WebhookRow.delivered_at.is_(None), WebhookRow.next_try_at <= now)
    rows = list(s.scalars(due.order_by(WebhookRow.next_try_at).limit(limit).with_for_update(skip_locked=True)))
    for row in rows:
        row.next_try_at = now + timedelta(seconds=HOLD_S)
    s.flush()
    return rows


def webhook_delivered(s: Session, id: int) -> None:
    row = s.get_one(WebhookRow, id, with_for_update=True)
    row.delivered_at, row.next_try_at, row.error = db_now(s), None, None
    row.tries += 1


def webhook_failed(s: Session, id: int, error: str, *, for_good: bool = False) -> bool:
    """Say why a delivery failed. It is tried again, later each time, for a day, unless it failed `for_good`.

    Says whether it is tried again.
    """
    row = s.get_one(WebhookRow, id, with_for_update=True)
    if row.delivered_at is not None:  # by another controller, which had it while this one was held up
        return False
    now = db_now(s)
    delay_s = min(FIRST_DELAY_S * 2.0 ** min(row.tries, 20), LONGEST_DELAY_S)
    over = for_good or now + timedelta(seconds=delay_s) > row.created_at + timedelta(seconds=GIVE_UP_S)
    row.next_try_at = None if over else now + timedelta(seconds=delay_s)
    row.tries += 1
    row.error = error[:2000]
    return not over
