"""A job that has ended is told to the address it names, by real servers that are slow, wrong or hostile."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from dsd_core.errors import SpecError
from jobs import db, store
from jobs.settings import Settings
from jobs.store.webhooks import FIRST_DELAY_S, GIVE_UP_S
from jobs.tables import WebhookRow
from tests.certificates import Certificates, make_certificates
from tests.jobs.builders import a_queued_job, cancel, job
from tests.worker.receiver import Receiver, receiving
from tests.worker.service import until
from worker import webhooks
from worker.webhooks import Message, NotDelivered, deliver, deliver_due

pytestmark = pytest.mark.fault("F28")
HERE = Settings(webhook_hosts=("localhost",), webhook_secret="a secret")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def an_ended_job(engine: Engine, url: str) -> str:
    job_id = a_queued_job(engine, webhook=url)
    cancel(engine, job_id)
    return job_id


def the_row(engine: Engine) -> WebhookRow:
    with db.reading(engine) as s:
        return s.scalars(select(WebhookRow)).one()


def make_due(engine: Engine, **changes: Any) -> None:
    """Let the time of the next try come."""
    with db.begin(engine) as s:
        s.execute(update(WebhookRow).values(next_try_at=db.db_now(s), **changes))


def send(receiver: Receiver, **options: Any) -> None:
    deliver(Message(7, receiver.url, {"job_id": "j", "status": "failed"}), HERE, **options)


def test_the_end_of_a_job_is_told_once_signed_and_with_an_id(engine: Engine, pool: ThreadPoolExecutor) -> None:
    with receiving() as receiver:
        job_id = an_ended_job(engine, receiver.url)
        assert [deliver_due(engine, HERE, pool) for _ in range(2)] == [1, 0]
    ((headers, body),) = receiver.got
    row = the_row(engine)
    assert json.loads(body) == {
        "id": row.id,
        "job_id": job_id,
        "name": "a-student",
        "status": "cancelled",
        "reason": "cancelled_by_user",
        "at": row.payload["at"],
    }
    at, digest = (part.split("=")[1] for part in headers["X-DSD-Signature"].split(","))
    assert digest == hmac.new(b"a secret", at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert (headers["X-DSD-Delivery"], headers["Content-Type"]) == (str(row.id), "application/json")
    assert row.delivered_at is not None and (row.tries, row.error, row.next_try_at) == (1, None, None)


def test_without_a_secret_there_is_no_signature() -> None:
    with receiving() as receiver:
        deliver(Message(1, receiver.url, {}), Settings(webhook_hosts=("localhost",)))
    assert "X-DSD-Signature" not in receiver.got[0][0]


def test_a_receiver_that_fails_is_tried_again_later_and_the_job_stays_as_it_ended(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    with receiving(500, 200) as receiver:
        job_id = an_ended_job(engine, receiver.url)
        assert deliver_due(engine, HERE, pool) == 0
        row = the_row(engine)
        assert row.error == "It answered 500."
        assert row.next_try_at is not None and (row.next_try_at - row.created_at).total_seconds() > FIRST_DELAY_S - 1
        assert deliver_due(engine, HERE, pool) == 0 and len(receiver.got) == 1
        make_due(engine)
        assert deliver_due(engine, HERE, pool) == 1
    assert len(set(receiver.ids())) == 1 and the_row(engine).tries == 2
    assert job(engine, job_id).status == "cancelled"


def test_after_a_day_nobody_is_called_any_more_and_the_reason_is_kept(engine: Engine, pool: ThreadPoolExecutor) -> None:
    an_ended_job(engine, "https://localhost:9/hook")
    waits = []
    for tries in (0, 1, 5, 30):
        make_due(engine, tries=tries)
        deliver_due(engine, HERE, pool)
        row = the_row(engine)
        assert row.next_try_at is not None
        waits.append((row.next_try_at - row.created_at).total_seconds())
    assert [round(wait, -1) for wait in waits] == [10, 20, 320, 3600]
    with db.begin(engine) as s:
        s.execute(
            update(WebhookRow).values(
                created_at=row.created_at - timedelta(seconds=GIVE_UP_S), next_try_at=row.created_at
            )
        )
    deliver_due(engine, HERE, pool)
    assert the_row(engine).next_try_at is None
    assert "cannot be reached" in str(the_row(engine).error)


def test_a_host_that_is_no_longer_listed_is_not_called(engine: Engine, pool: ThreadPoolExecutor) -> None:
    with receiving() as receiver:
        an_ended_job(engine, receiver.url)
        assert deliver_due(engine, Settings(webhook_hosts=("example.org",)), pool) == 0
    row = the_row(engine)
    assert receiver.got == []
    assert row.next_try_at is None and "no webhooks at 'localhost'" in str(row.error)


def test_a_redirect_is_not_followed() -> None:
    with receiving() as inside, receiving(f"http://127.0.0.1:{inside.url.split(':')[2]}") as receiver:
        with pytest.raises(NotDelivered, match=r"answered 302\. Redirects are not followed"):
            send(receiver)
    assert len(receiver.got) == 1 and inside.got == []


def test_a_name_that_leads_inside_is_not_connected_to() -> None:
    with receiving() as receiver:
        port = receiver.url.split(":")[2].removesuffix("/hook")
        message = Message(1, f"https://hooks.example.org:{port}/", {})
        with pytest.raises(NotDelivered, match=r"leads to 127\.0\.0\.1, which is no public address"):
            deliver(message, Settings(webhook_hosts=("hooks.example.org",)), names=lambda *_: ["127.0.0.1"])
    assert receiver.got == []


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_called(certificates: Certificates) -> None:
    """F55: the second answer of a hostile name server leads elsewhere; nobody asks for it."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with receiving(certificates=certificates) as receiver:
        tls = ssl.create_default_context(cafile=certificates.authority)
        send(receiver, tls=tls, names=rebinding)
    assert asked == ["localhost"] and len(receiver.got) == 1


def test_a_certificate_of_nobody_we_know_is_refused(certificates: Certificates) -> None:
    with (
        receiving(certificates=certificates) as receiver,
        pytest.raises(NotDelivered, match="certificate verify failed"),
    ):
        send(receiver)
    assert receiver.got == []


def test_an_answer_that_trickles_is_hung_up_on_in_time() -> None:
    with receiving() as receiver:
        receiver.silent.set()
        with pytest.raises(NotDelivered, match=r"no whole answer within 0\.3 s"):
            send(receiver, timeout_s=0.3)


def test_a_job_may_not_have_anything_sent_over_plain_http_elsewhere() -> None:
    with pytest.raises(SpecError, match="needs https"):
        deliver(Message(1, "http://example.org/", {}), Settings(webhook_hosts=("example.org",)))


def test_two_controllers_deliver_each_message_once(engine: Engine, database_url: str) -> None:
    settings = HERE.model_copy(update={"database_url": database_url})
    stop = Event()
    with receiving() as receiver:
        for _ in range(20):
            an_ended_job(engine, receiver.url)
        controllers = [Thread(target=webhooks.serve, args=(settings, stop)) for _ in range(2)]
        for controller in controllers:
            controller.start()
        until(lambda: len(receiver.got) >= 20)
        stop.set()
        for controller in controllers:
            controller.join()
    assert len(set(receiver.ids())) == len(receiver.got) == 20
    with db.reading(engine) as s:
        assert store.due_webhooks(s, 50) == []
