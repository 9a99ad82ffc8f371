"""A broker that forgets, dies, refuses, repeats and shuffles. It holds hints only, so nothing may come of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
import redis

from jobs.status import Status
from tests.faults.oracles import job_processes
from tests.faults.proxy import Proxy
from tests.faults.site import Site
from tests.servers import Valkey
from tests.worker.service import until

pytestmark = pytest.mark.timeout(180)

QUEUE = "dsd:jobs"  # Kombu's list with our key prefix
DEFERRED_S = 60.0


def succeeded(site: Site, *jobs: str) -> bool:
    return all(site.status(job) == Status.SUCCEEDED for job in jobs)


def each_ran_once(site: Site) -> None:
    tries = {job: len(site.pids(job)) for job in site.ledger}
    assert set(tries.values()) == {1}, tries
    assert {site.row(job).attempt for job in site.ledger} == {1}


@pytest.mark.faults_only
@pytest.mark.fault("F12")
def test_twenty_queued_jobs_survive_a_broker_that_is_emptied_and_two_running_ones_do_not_notice(site: Site) -> None:
    site.fleet.controller()
    for name in ("one", "two"):
        site.fleet.worker(name)
    running = [site.submit("wait_for=go finish") for _ in range(2)]
    until(lambda: all(site.pids(job) for job in running))
    queued = [site.submit("finish") for _ in range(20)]
    until(lambda: site.valkey.client().llen(QUEUE) >= len(queued))
    site.valkey.client().flushall()
    for job in running:
        (site.folder(job) / "go").touch()
    site.all_end()
    each_ran_once(site)


@pytest.mark.faults_only
@pytest.mark.fault("F13")
def test_a_broker_that_dies_twelve_times_disturbs_no_training_and_jobs_start_soon_after_it_is_back(site: Site) -> None:
    site.fleet.controller()
    site.fleet.worker("one")
    job = site.submit("wait_for=go finish")
    until(lambda: site.pids(job))
    for gap in range(12):
        site.valkey.kill()
        heartbeats(site, job, 1 + gap % 3)
        site.valkey.start()
    last = site.submit("finish")
    (site.folder(job) / "go").touch()
    until(lambda: succeeded(site, job))
    until(lambda: succeeded(site, last), 20)
    each_ran_once(site)


def heartbeats(site: Site, job: str, number: int) -> None:
    """Returns when the job's worker was heard of so often."""
    for _ in range(number):
        before = site.row(job).heartbeat_at
        until(lambda before=before: site.row(job).heartbeat_at > before)  # type: ignore[misc]


@pytest.mark.faults_only
@pytest.mark.fault("F14")
def test_jobs_are_taken_while_the_broker_is_down_and_start_once_it_is_back(site: Site) -> None:
    site.fleet.controller()
    site.fleet.worker("one")
    assert site.api.get("/readyz").json()["status"] == "degraded"  # MLflow is not there
    site.valkey.kill()
    answers = [site.post() for _ in range(5)]
    assert {answer.status_code for answer in answers} == {202}
    ready = site.api.get("/readyz")
    assert (ready.status_code, ready.json()["broker"]) == (200, "away")
    until(lambda: "relay.broker_fails" in site.fleet.log("controller"))
    site.valkey.start()
    site.all_end(DEFERRED_S)
    each_ran_once(site)


def full(valkey: Valkey) -> None:
    valkey.client().config_set("maxmemory", "1")


def read_only(valkey: Valkey) -> None:
    valkey.client().execute_command("REPLICAOF", "127.0.0.1", "9")


def locked(valkey: Valkey) -> None:
    client = valkey.client()
    client.config_set("requirepass", "secret")
    redis.Redis(unix_socket_path=str(valkey.socket), password="secret").client_kill_filter(_type="normal")


def mend(valkey: Valkey, password: str | None) -> None:
    client = redis.Redis(unix_socket_path=str(valkey.socket), password=password)
    client.execute_command("REPLICAOF", "NO", "ONE")
    client.config_set("maxmemory", "0")
    client.config_set("requirepass", "")
    client.close()


@pytest.mark.faults_only
@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    ("spoil", "password"),
    [
        (full, None),
        (read_only, None),
        (locked, "secret"),
    ],
)
def test_a_broker_that_refuses_to_write_delays_jobs_and_ends_nobody(
    site: Site, spoil: Callable[[Valkey], None], password: str | None
) -> None:
    controller = site.fleet.controller()
    worker = site.fleet.worker("one")
    before = site.submit("finish")
    until(lambda: succeeded(site, before))
    spoil(site.valkey)
    site.submit("finish")
    until(lambda: "relay.broker_fails" in site.fleet.log("controller"))
    mend(site.valkey, password)
    site.all_end(DEFERRED_S)
    assert (controller.poll(), worker.poll()) == (None, None)
    each_ran_once(site)


@pytest.mark.faults_only
@pytest.mark.fault("F15")
def test_a_broker_that_keeps_silent_does_not_keep_the_controller_from_lost_workers(site: Site, tmp_path: Path) -> None:
    with proxied(site.valkey.socket, tmp_path) as proxy:
        site.fleet.controller(broker_url=f"redis+socket://{proxy.address}")
        first = site.fleet.worker("first")
        job = site.submit("hang_first finish")
        until(lambda: site.has_noted(job, "hanging"))
        proxy.set("blackhole")
        waiting = site.submit("finish")
        first.kill()
        until(lambda: site.row(job).attempt == 2, 20)
        proxy.set("pass")
        site.fleet.worker("second")
        site.all_end(DEFERRED_S)
    assert site.row(waiting).attempt == 1


@contextmanager
def proxied(server: Path, folder: Path) -> Iterator[Proxy]:
    """A proxy in front of a server's Unix socket."""
    proxy = Proxy(folder / server.name, server)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Do this again and again in a thread; an error in it fails the test."""
    over, errors = Event(), []

    def run() -> None:
        try:
            while not over.wait(0.1):
                work()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert errors == []


def mangle(broker: redis.Redis, dice: random.Random) -> None:
    """Take what waits in the queues, drop three in ten, and put the rest back five times in any order."""
    for key in [name for name in broker.keys(b"dsd:jobs*") if broker.type(name) == b"list"]:
        taken = broker.pipeline().lrange(key, 0, -1).delete(key).execute()[0]
        messages = [message for message in taken if dice.random() > 0.3] * 5
        dice.shuffle(messages)
        if messages:
            broker.rpush(key, *messages[:100])


@pytest.mark.faults_only
@pytest.mark.fault("F16")
def test_messages_that_are_lost_shuffled_and_come_five_times_start_no_job_twice(site: Site) -> None:
    most: Counter[str] = Counter()

    def look() -> None:
        for job, count in Counter(process.environ()["JOB_ID"] for process in job_processes(site.ledger)).items():
            most[job] = max(most[job], count)

    site.fleet.controller()
    dice, broker = random.Random(0), site.valkey.client()
    with meanwhile(lambda: mangle(broker, dice)), meanwhile(look):
        for _ in range(12):
            site.submit("steps=3 finish")
        until(lambda: "controller.started" in site.fleet.log("controller"))
        for name in ("one", "two"):
            site.fleet.worker(name)
        site.all_end()
    assert set(most.values()) == {1}
    each_ran_once(site)


@pytest.mark.faults_only
@pytest.mark.fault("F17")
def test_a_job_that_outlives_the_brokers_patience_is_not_started_again(site: Site) -> None:
    site.fleet.controller()
    for name in ("one", "two"):
        site.fleet.worker(name, app="tests.faults.impatient_tasks")
    job = site.submit("wait_for=go finish")
    until(lambda: site.pids(job))
    heartbeats(site, job, 15)  # 4.5 s, several times the visibility timeout
    (site.folder(job) / "go").touch()
    site.all_end()
    each_ran_once(site)
