"""The worker's Celery application with the bare child."""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.settings import settings
from worker.tasks import make_app

BARE = (sys.executable, "-S", "-E", str(Path(__file__).parent / "bare_child.py"))

app = make_app(settings().broker_url, BARE)
