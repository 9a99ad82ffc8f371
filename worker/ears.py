"""What a worker hears of work with: the queues for its device, and one of its own."""

from __future__ import annotations

import logging

from celery import Celery

from jobs import queue
from jobs.resources import QUEUE, Offer, queues_of

log = logging.getLogger(__name__)


def heard_by(offer: Offer) -> tuple[str, ...]:
    """The Celery queues of a worker."""
    return *queues_of(offer), own_queue(offer)


def own_queue(offer: Offer) -> str:
    return f"{QUEUE}.worker.{offer.worker}"


class Ears:
    """The Celery worker of this process, as the broker knows it."""

    def __init__(self, app: Celery, offer: Offer) -> None:
        self._app, self._offer = app, offer

    def listen(self, on: bool) -> None:
        """Take messages, or leave them to others."""
        change = self._app.control.add_consumer if on else self._app.control.cancel_consumer
        for name in heard_by(self._offer):
            change(name, destination=[self._offer.worker])

    def broker_answers(self) -> bool:
        return queue.broker_alive(self._app.conf.broker_url)

    def remind(self) -> None:
        """Send this worker a message that there is work."""
        try:
            queue.publish(self._app, "", 0, queue=own_queue(self._offer))
        except Exception as error:  # a broker fails in many ways
            log.warning("worker.not_reminded error=%s", error)
