"""What a worker says of itself while it has nothing to do, and what it hears."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.status import Drain
from tests.worker.service import OFFER, Service, until
from worker.board import Board
from worker.ears import Ears
from worker.life import Life


class FakeEars(Ears):
    """Ears without a broker."""

    def __init__(self) -> None:
        self.listening = True
        self.answers = True
        self.reminders = 0

    def listen(self, on: bool) -> None:
        self.listening = on

    def broker_answers(self) -> bool:
        return self.answers

    def remind(self) -> None:
        self.reminders += 1


@pytest.fixture
def ears() -> FakeEars:
    return FakeEars()


@pytest.fixture
def life(service: Service, ears: FakeEars) -> Life:
    settings = service.settings.model_copy(update={"deaf_s": 0.2})
    return Life(settings, OFFER, Board(), ears)


def test_a_worker_is_known_with_what_it_has_and_what_it_runs(service: Service, life: Life) -> None:
    life.board.job_id = "some-job"
    life.beat()
    (row,) = service.workers()
    assert (row.name, row.host, row.device, row.job_id) == ("test", "here", "cpu", "some-job")


def test_a_worker_that_is_to_be_emptied_stops_listening_until_it_may_go_on(
    service: Service, life: Life, ears: FakeEars
) -> None:
    life.beat()
    service.drain(OFFER.worker, Drain.NOW)
    life.beat()
    assert not life.board.takes_jobs and life.board.gives_back and not ears.listening
    service.drain(OFFER.worker, None)
    life.beat()
    assert life.board.takes_jobs and not life.board.gives_back and ears.listening


def test_a_worker_that_starts_anew_is_still_to_be_emptied(service: Service, life: Life, ears: FakeEars) -> None:
    life.beat()
    service.drain(OFFER.worker, Drain.AFTER_JOB)
    again = Life(life.settings, OFFER, Board(), ears)
    again.beat()
    assert not again.board.takes_jobs and not ears.listening


def is_deaf(life: Life) -> bool:
    life.beat()
    return life.deaf()


def test_an_idle_worker_that_hears_of_no_job_although_one_waits_is_deaf(service: Service, life: Life) -> None:
    service.submit("finish")
    assert not is_deaf(life)
    until(lambda: is_deaf(life))


def test_an_idle_worker_reminds_itself_of_work_whose_message_went_elsewhere(
    service: Service, life: Life, ears: FakeEars
) -> None:
    life.beat()
    service.submit("finish")
    life.beat()
    assert ears.reminders == 0
    life.beat()
    assert ears.reminders == 1


@pytest.mark.parametrize("excuse", ["no job", "busy", "emptied", "does not fit", "no broker"])
def test_a_worker_with_an_excuse_is_not_deaf(service: Service, life: Life, ears: FakeEars, excuse: str) -> None:
    if excuse != "no job":
        service.submit("finish", resources={"memory_gib": 64})
    if excuse == "busy":
        life.board.job_id = "another"
    if excuse == "emptied":
        life.board.shutting_down = True
    if excuse == "does not fit":
        life.offer = replace(OFFER, memory_gib=32)
    ears.answers = excuse != "no broker"
    life.beat()
    life.idle_since = None if life.idle_since is None else life.idle_since - 60
    assert not is_deaf(life)
