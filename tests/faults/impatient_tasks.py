"""The worker's Celery application on a broker that delivers again after a second what was not acknowledged."""

from __future__ import annotations

from jobs.settings import settings
from tests.worker.service import SCRIPTED
from worker.tasks import make_app

app = make_app(settings().broker_url, SCRIPTED)
app.conf.broker_transport_options |= {
    "visibility_timeout": 1,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
