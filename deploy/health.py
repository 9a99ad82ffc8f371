"""`python -m deploy.health url URL | controller | worker NODE`: exit code 0 where that part works, else 1 and why.

What containers ask about themselves, from inside.
"""

from __future__ import annotations

import argparse
import sys
import urllib.request
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from jobs import db, queue
from jobs.settings import settings
from jobs.tables import OutboxRow

TIMEOUT_S = 5.0
OVERDUE_S = 60.0  # a controller that works takes a due message within a second, also while the broker is away


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m deploy.health", description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("url", help="an address answers 200").add_argument("url")
    parts.add_parser("controller", help="no message waits to be relayed for long")
    parts.add_parser("worker", help="a Celery node answers").add_argument("node")
    args = parser.parse_args(argv)
    match args.part:
        case "url":
            trouble = why_no_answer(args.url)
        case "controller":
            trouble = why_relay_stands(settings().db_url)
        case _:
            trouble = why_node_is_silent(settings().broker_url or "", args.node)
    print(trouble or "healthy")
    return 1 if trouble else 0


def why_no_answer(url: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"{url} answers {answer.status}."
    except OSError as error:
        return f"{url}: {error}"


def why_relay_stands(db_url: str) -> str | None:
    """A message that is overdue means that no controller relays; without the database it cannot."""
    engine = db.make_engine(db_url)
    try:
        with db.reading(engine) as s:
            since = db.db_now(s) - timedelta(seconds=OVERDUE_S)
            overdue = select(OutboxRow.job_id).where(OutboxRow.sent_at.is_(None), OutboxRow.next_try_at < since)
            job_id = s.scalar(overdue.limit(1))
            return f"Job {job_id} has waited over {OVERDUE_S:.0f} s to be announced." if job_id else None
    except SQLAlchemyError as error:
        return f"The database does not answer: {type(error).__name__}"
    finally:
        engine.dispose()


def why_node_is_silent(broker_url: str, node: str) -> str | None:
    """The parent process answers, also while its child trains."""
    try:
        inspect = queue.make_app(broker_url).control.inspect(destination=[node], timeout=TIMEOUT_S)
        return None if inspect.ping() else f"{node} does not answer."
    except Exception as error:  # a broker fails in many ways
        return f"{node} cannot be asked: {type(error).__name__}"


if __name__ == "__main__":
    sys.exit(main())
