"""Jobs, one after the other, each from the claim to the row that says why its attempt ended.

The parent never trains: it starts a child, copies the child's events to the database, shows signs of life, and passes
requests on. It may die at any instruction: the next attempt goes on from the run folder and the database.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from dsd_core.errors import DsdError
from dsd_core.fault_points import fault_point
from dsd_core.spec import parse_spec
from jobs import store
from jobs.resources import Demand, demand_of
from jobs.settings import Settings
from jobs.status import TERMINAL, Reason, Request
from jobs.storage import Bucket
from worker import launch
from worker.database import Away, Database
from worker.inheritance import forerunners, inherit
from worker.keeper import Keeper
from worker.memory import taken_over
from worker.outcome import Ending, Error, outcome, over_memory, over_time, stalled
from worker.pulse import Pulse
from worker.references import makers_of
from worker.run_copy import CHECKPOINTS, sweep
from worker.run_folder import Tail, log_tail, prepare
from worker.slot import Slot

log = logging.getLogger(__name__)

COPY_S = 1.0  # between two looks at the child's events, so that a watcher sees them live
MEMORY_S = 0.25  # the same for a job that says how much memory it takes
STACKS_S = 1.0  # for a process that stands still to write down what its threads do
BATCH = 500  # events in one transaction
EXIT_CODE = "exit_code"  # a file of the run folder
GIB = 2**30
SUCCESSES = (Reason.FINISHED, Reason.STOPPED_EARLY)

T = TypeVar("T")
Transaction = Callable[[Callable[[Session], bool]], bool]


def work(slot: Slot) -> None:
    """Run jobs until there is none that this worker can run, or it is to take no more. Raises StorageError."""
    assert slot.storage  # where it cannot be had, no job is claimed
    database = Database(slot.settings.db_url, longest_delay_s=slot.settings.heartbeat_s)
    try:
        while slot.board.takes_jobs and (claim := _claim(slot, database)):
            slot.board.job_id = claim.job_id
            try:
                run_claim(slot, database, claim)
            finally:
                slot.board.job_id = None
            slot.warm_up()
    except Away as error:
        log.error("worker.no_claim error=%s", error)
    finally:
        database.close()


def run_claim(slot: Slot, database: Database, claim: store.Claim) -> Reason | None:
    """Run one attempt and return why it ended; None when it was taken from us, or the database stays away."""
    log.info("job.claimed id=%s attempt=%s fence=%s", claim.job_id, claim.attempt, claim.fence)
    fault_point("worker.after_claim")
    run = Run(slot, database, claim)
    try:
        reason, error = _attempt(run)
        if run.lost:
            log.warning("job.lost id=%s attempt=%s", claim.job_id, claim.attempt)
            return None
        ended = _finish(run, reason, error)
    except Away as away:
        log.error("job.abandoned id=%s attempt=%s error=%s", claim.job_id, claim.attempt, away)
        return None
    finally:
        run.keeper.close()
    _tidy(run)
    return ended


def _attempt(run: Run) -> tuple[Reason, Error | None]:
    """Run the child, if it may start, and store what it leaves."""
    try:
        child = _start(run)
        exit_code = 0 if child is None else _run_to_its_end(run, child)
    except DsdError as error:
        return Reason(error.code), error.as_dict()
    reason, failure = outcome(exit_code, run.tail.last, run.ending, processes=run.demand.processes)
    return (reason if run.lost else _store(run, reason)), failure


def _run_to_its_end(run: Run, child: launch.Child) -> int:
    try:
        exit_code = _said(run, _follow(run, child))
    finally:
        launch.kill(child)
    _copy(run, run.insist)
    return exit_code


@dataclass
class Run:
    """What this worker knows about its attempt."""

    slot: Slot
    database: Database
    claim: store.Claim
    started: float = field(default_factory=time.monotonic)
    pulse: Pulse = field(init=False)  # from the start of the child on
    request: Request | None = None  # as of the last heartbeat
    ending: Ending | None = None  # why we end the child
    told_to_stop: bool = False  # to keep what it has, by SIGUSR2
    lost: bool = False  # someone else has the job now
    beat_at: float = 0.0
    stop_by: float | None = None  # time.monotonic(): when the grace period ends

    def __post_init__(self) -> None:
        self.settings = self.slot.settings
        self.heard_at = self.started  # time.monotonic() of the last heartbeat that reached the database
        self.keeper = Keeper(self.settings, self.slot.storage, self.claim.job_id)
        self.tail = Tail(self.folder / "events.jsonl", self.claim.events_offset)

    def insist(self, work: Callable[[Session], T]) -> T:
        return self.database.insist(work, lambda: self.slot.board.gives_back or self.cut_off)

    @property
    def folder(self) -> Path:
        return self.settings.run_dir(self.claim.job_id)

    @property
    def period_s(self) -> float:
        """Between two looks at what is awaited."""
        return min(COPY_S if self.memory_limit_gib is None else MEMORY_S, self.settings.heartbeat_s)

    @property
    def demand(self) -> Demand:
        return demand_of(self.claim.spec)

    @property
    def run_seconds(self) -> float:
        """Of all attempts, up to now."""
        return self.claim.run_seconds + time.monotonic() - self.started

    @property
    def over_time(self) -> bool:
        limit_s = self.claim.spec.get("max_runtime_s")
        return limit_s is not None and self.run_seconds > limit_s

    @property
    def cut_off(self) -> bool:
        """The database was not reached for so long that another worker may have the job."""
        return time.monotonic() - self.heard_at > self.settings.cutoff_s

    @property
    def memory_limit_gib(self) -> float | None:
        """Of RAM; on a GPU the job's figure means the memory of that, which looks after itself."""
        return self.demand.memory_gib if self.slot.offer.device == "cpu" else None


def _claim(slot: Slot, database: Database) -> store.Claim | None:
    lease_s = slot.settings.lease_s
    return database.insist(
        lambda s: store.claim_next(s, slot.offer, lease_s), give_up=lambda: not slot.board.takes_jobs
    )


def _start(run: Run) -> launch.Child | None:
    """Fetch what the child goes on from, and start it. None: the job was lost, or asked to stop, before that."""
    job_id, fence = run.claim.job_id, run.claim.fence
    spec = parse_spec(run.claim.spec)
    makers = run.insist(lambda s: makers_of(s, spec))
    before = run.insist(lambda s: forerunners(s, run.claim))
    left = launch.end_leftovers(job_id, fence)
    if left:
        log.warning("job.leftovers_killed id=%s processes=%s", job_id, left)
    run.keeper.fetch(
        [*((maker, "student") for maker in makers.values()), *((job_id, CHECKPOINTS) for job_id in before)]
    )
    while not run.keeper.wait(run.period_s):
        if not _goes_on(run):
            return None
    weights = {part: run.keeper.input(maker, "student") / "model.safetensors" for part, maker in makers.items()}
    arguments = prepare(run.folder, run.claim.spec, weights)
    inherit(run.folder, [run.keeper.input(job_id, CHECKPOINTS) for job_id in before])
    _find_place(run)
    (run.folder / EXIT_CODE).unlink(missing_ok=True)
    run.pulse = Pulse(run.folder / "pulse", run.settings.stall_s, run.settings.first_step_s)
    fault_point("worker.before_spawn")
    child = run.slot.start(
        [*arguments, "--fence", str(fence), *_signals(run.settings)],
        job_id=job_id,
        fence=fence,
        log=run.folder / "log.txt",
        processes=run.demand.processes,
    )
    fault_point("worker.after_spawn")
    return child


def _signals(settings: Settings) -> list[str]:
    """Where the child keeps what teachers say, and how much of it."""
    return ["--store", str(settings.signals_dir), "--store-bytes", str(int(settings.signals_bytes))]


def _find_place(run: Run) -> None:
    """Events are copied from where the database has them up to; on another host, or after a power cut, the file may end
    before that, and what will be appended is new all the same."""
    end = run.tail.end
    if end < run.tail.offset:
        log.warning("events.shorter id=%s copied=%s there=%s", run.claim.job_id, run.tail.offset, end)
        run.insist(lambda s: store.restart_events(s, run.claim, end))
        run.tail.offset = end
    run.tail.skip_to_fresh()


def _goes_on(run: Run) -> bool:
    """Show a sign of life while nothing runs. False: the job is lost, or has to end; a child must start to be stopped
    with what it has."""
    try:
        _beat(run)
    except Away as error:
        log.warning("job.database_away id=%s error=%s", run.claim.job_id, error)
    run.ending = _ending(run) or run.ending
    return not run.lost and (run.ending is None or run.ending.reason is Reason.STOPPED_EARLY)


def _follow(run: Run, child: launch.Child) -> int:
    """Copy, beat and pass on requests until the child has ended; kills it at once when the claim is lost."""
    while (exit_code := child.wait(run.period_s)) is None:
        try:
            _copy(run, run.database)
            _beat(run)
        except Away as error:
            log.warning("job.database_away id=%s error=%s", run.claim.job_id, error)
        if run.lost:
            launch.kill(child)
        else:
            _watch(run, child)
            _heed(run, child)
    return exit_code


def _said(run: Run, exit_code: int) -> int:
    """What the training process ended with, where torchrun, which has started several, says only that they failed."""
    said = run.folder / EXIT_CODE
    return int(said.read_text()) if run.demand.processes > 1 and said.exists() else exit_code


def _copy(run: Run, transaction: Transaction) -> None:
    """Bring the child's new events to the database. Where it is away they stay in the file."""
    while not run.lost and (batch := run.tail.read(BATCH)):
        run.lost = not transaction(partial(store.append_events, claim=run.claim, events=batch))
        run.tail.copied(batch)
        if any(event["type"] in ("checkpoint", "picture") for event, _ in batch):
            run.keeper.keep()


def _beat(run: Run) -> None:
    if time.monotonic() < run.beat_at:
        return
    heard = run.database(lambda s: store.beat(s, run.claim, run.settings.lease_s))
    run.heard_at = time.monotonic()
    run.beat_at = run.heard_at + run.settings.heartbeat_s
    run.lost = run.lost or heard is None
    run.request = heard.request if heard else None


def _watch(run: Run, child: launch.Child) -> None:
    """Kill a child that takes more memory than it asked for, or stands still; not one that writes its checkpoint."""
    limit_gib = run.memory_limit_gib
    if limit_gib is not None and (taken := taken_over(child.pid, limit_gib * GIB)):
        run.ending = over_memory(taken, limit_gib)
        launch.kill(child)
    elif run.pulse.stands_still() and child.stop_asked_at is None:
        run.ending = stalled(run.pulse.silent_s)
        if run.pulse.began:
            launch.tell(child, signal.SIGUSR1)
            child.wait(STACKS_S)
        launch.kill(child)


def _heed(run: Run, child: launch.Child) -> None:
    """Do what is asked of the job. What was asked once stays asked, for a child cannot take back its checkpoint."""
    run.ending = _ending(run) or run.ending
    if run.ending is None:
        return
    if run.ending.reason is not Reason.STOPPED_EARLY:
        run.stop_by = run.stop_by or time.monotonic() + run.settings.grace_s
        launch.ask_to_stop(child)
        launch.kill_after(child, run.settings.grace_s)
    elif not run.told_to_stop and run.pulse.began:
        launch.tell(child, signal.SIGUSR2)  # and no grace: it may evaluate and export for as long as it takes
        run.told_to_stop = True


def _ending(run: Run) -> Ending | None:
    """Why the child has to end now, the weightiest first."""
    if run.request is Request.CANCEL:
        return Ending(Reason.CANCELLED_BY_USER)
    if run.over_time:
        return over_time()
    if run.slot.board.gives_back or run.cut_off:
        return Ending(Reason.RELEASED)
    if run.request is Request.PAUSE:
        return Ending(Reason.PAUSED)
    return Ending(Reason.STOPPED_EARLY) if run.request is Request.STOP else None


def _store(run: Run, reason: Reason) -> Reason:
    """Wait until the storage has what the child left: without end for a student, which counts only when it is there,
    else for the grace period. Returns the reason, RELEASED where a shutdown leaves no time to store the student."""
    succeeded, stop_by = reason in SUCCESSES, run.stop_by
    run.keeper.keep()
    while not run.keeper.wait(run.period_s):
        _goes_on(run)
        if run.lost or run.request is Request.CANCEL:
            break
        if succeeded and not run.slot.board.gives_back:
            continue
        stop_by = stop_by or time.monotonic() + run.settings.grace_s
        if time.monotonic() > stop_by:
            log.warning("job.not_stored id=%s: the storage lacks what was written last", run.claim.job_id)
            return Reason.RELEASED if succeeded else reason
    return reason


def _finish(run: Run, reason: Reason, error: Error | None) -> Reason | None:
    """Write the outcome down. None: the claim was lost before that."""
    fault_point("worker.before_finish")
    if reason in (Reason.RELEASED, Reason.PAUSED):
        held = run.insist(lambda s: store.release(s, run.claim, run.run_seconds, reason=reason))
    else:
        result = run.tail.last["result"] if reason in SUCCESSES and run.tail.last else None
        error = error and {**error, "log_tail": log_tail(run.folder / "log.txt")}
        end = partial(
            store.finish,
            claim=run.claim,
            reason=reason,
            result=result,
            error=error,
            run_seconds=run.run_seconds,
            backoff_base_s=run.settings.backoff_s,
        )
        held = run.insist(end) is not None
    fault_point("worker.after_finish")
    log.info("job.ended id=%s attempt=%s reason=%s held=%s", run.claim.job_id, run.claim.attempt, reason, held)
    return reason if held else None


def _tidy(run: Run) -> None:
    """Delete this host's copies of jobs that have ended, this one's first, where the storage is a bucket."""
    bucket = run.slot.storage
    if not isinstance(bucket, Bucket):
        return

    def has_ended(job_id: str) -> bool:
        row = run.database(lambda s: store.get(s, job_id))
        return row is not None and row.status in TERMINAL

    try:
        if run.keeper.wait(0) and has_ended(run.claim.job_id):
            run.keeper.delete()
        sweep(bucket, run.settings.storage_dir / "runs", has_ended)
    except Away:
        log.warning("job.not_tidied id=%s", run.claim.job_id)
