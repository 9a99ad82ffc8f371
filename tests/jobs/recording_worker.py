"""A Celery worker that writes each message it gets into a file: `python -m tests.jobs.recording_worker BROKER FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from jobs import queue


def main(broker_url: str, file: Path) -> None:
    app = queue.make_app(broker_url)

    @app.task(name=queue.TASK)
    def record(job_id: str, attempt: int) -> None:
        with file.open("a") as lines:
            lines.write(f"{job_id} {attempt}\n")

    app.worker_main(["worker", "--pool=solo", "--without-gossip", "--without-mingle", "--loglevel=WARNING"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
