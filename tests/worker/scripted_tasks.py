"""The worker's Celery application, but for the training process, which follows a script."""

from __future__ import annotations

from jobs.settings import settings
from tests.worker.service import SCRIPTED
from worker.tasks import make_app

app = make_app(settings().broker_url, SCRIPTED)
