"""Every state that workers, controller, broker and people can bring two jobs into, one of which needs the other.

Any process may stand still for any time and go on too late: whoever can act, acts or does not. What breaks something
(a crash, a lost message, a worker shut down) and what people ask for are limited in number, so that the states are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from jobs.status import HELD, MOVES, TERMINAL, Reason, Request, Status
from tests.jobs.protocol_model import Job, Jobs, Lease, Message, Protocol, needs_left


class Worker(NamedTuple):
    """A worker with a claim, as good or bad as it may be by now."""

    place: int  # of the job
    fence: int
    step: int
    heard: Request | None = None


class Relay(NamedTuple):
    """A controller between taking a message and marking it. `fresh`: the row it took is still there."""

    place: int
    published: bool = False
    fresh: bool = True


class World(NamedTuple):
    jobs: Jobs
    saved: tuple[int, ...]  # the step of the newest checkpoint of each job
    workers: tuple[Worker | None, ...]  # None: idle
    hints: int  # messages in the broker; each makes one worker look for work
    relay: Relay | None
    faults_left: int
    wishes_left: int


class Kind(Enum):
    GOES_ON = auto()  # happens if nothing else does
    FAULT = auto()
    WISH = auto()


class Step(NamedTuple):
    what: str
    kind: Kind
    after: World
    fence: int | None = None  # of the claim under which it was done


@dataclass(frozen=True)
class Bounds:
    """How far it goes; the defaults take some seconds."""

    attempts: int = 2
    steps: int = 2  # of training, each with a checkpoint
    faults: int = 2
    wishes: int = 1
    hints: int = 1


@dataclass
class Findings:
    states: int = 0
    steps: int = 0
    moves: set[tuple[Status, Status]] = field(default_factory=set)
    broken: str | None = None  # a promise, and how it came to that
    stuck: int = 0  # states from which, without a further fault, no end can be reached
    stuck_at: str | None = None


class Checker:
    def __init__(self, protocol: Protocol, bounds: Bounds) -> None:
        self.protocol, self.bounds = protocol, bounds
        first = protocol.submitted((), bounds.attempts)
        jobs = protocol.submitted(first, bounds.attempts, needs=(0,))
        self.first = World(jobs, (0, 0), (None, None), 0, None, bounds.faults, bounds.wishes)

    def steps(self, world: World) -> Iterator[Step]:
        for number, worker in enumerate(world.workers):
            if worker is not None:
                yield from self._working(world, number, worker)
        if None in world.workers and world.hints:
            yield from self._looking_for_work(world, world.workers.index(None))
        for place, job in enumerate(world.jobs):
            if job.status not in TERMINAL:
                yield from self._time_and_controller(world, place, job)
                yield from self._people(world, place, job)
        if world.relay is not None:
            yield from self._relaying(world, world.relay)
        if world.hints and world.faults_left:
            yield Step("the broker loses its messages", Kind.FAULT, _hurt(world)._replace(hints=0))

    def _looking_for_work(self, world: World, number: int) -> Iterator[Step]:
        world = world._replace(hints=world.hints - 1)
        found = False
        for place, job in enumerate(world.jobs):
            claimed = self.protocol.claim(job)
            if claimed is None:
                continue
            found = True
            worker = Worker(place, claimed.fence, world.saved[place])
            yield Step(f"claim {place}", Kind.GOES_ON, _work(self._put(world, place, claimed), number, worker))
        if not found:
            yield Step("there is nothing to claim", Kind.GOES_ON, world)

    def _working(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        """One transaction of a worker that runs a job. Where it has lost its claim, it drops the job."""
        place, fence, step, heard = worker
        job, rules = world.jobs[place], self.protocol

        def then(what: str, after: Job | None, kind: Kind = Kind.GOES_ON, next_: Worker | None = None) -> Step:
            if after is None:
                return Step(f"{what} {place}, too late", Kind.GOES_ON, _work(world, number, None))
            changed = self._put(world, place, after)
            return Step(f"{what} {place}", kind, _work(changed, number, next_), fence)

        told = rules.beat(job, fence)
        yield then("beat", told, next_=told and worker._replace(heard=told.request))
        if step < self.bounds.steps:
            yield self._train(world, number, worker)
        else:
            yield then("finish", rules.finish(job, fence, Reason.FINISHED))
        if heard == Request.CANCEL:
            yield then("obey cancel", rules.finish(job, fence, Reason.CANCELLED_BY_USER))
        elif heard == Request.PAUSE:
            yield then("obey pause", rules.release(job, fence, Reason.PAUSED))
        elif heard == Request.STOP:
            reason = Reason.STOPPED_EARLY if step else Reason.NOTHING_TO_KEEP
            yield then("obey stop", rules.finish(job, fence, reason))
        if world.faults_left:
            world = _hurt(world)
            yield Step(f"the worker of {place} dies", Kind.FAULT, _work(world, number, None))
            yield then("crash of the child", rules.finish(job, fence, Reason.CRASHED), Kind.FAULT)
            yield then("shutdown", rules.release(job, fence, Reason.RELEASED), Kind.FAULT)

    def _train(self, world: World, number: int, worker: Worker) -> Step:
        """A step of training and its checkpoint, which a late worker writes as well, then the news of it."""
        place, fence, step, _ = worker
        saved = list(world.saved)
        saved[place] = self.protocol.newest_checkpoint(saved[place], step + 1)
        world = world._replace(saved=tuple(saved))
        told = self.protocol.tell(world.jobs[place], fence, step + 1)
        if told is None:
            return Step(f"train {place}, too late", Kind.GOES_ON, _work(world, number, None))
        world = self._put(world, place, told)
        return Step(f"train {place}", Kind.GOES_ON, _work(world, number, worker._replace(step=step + 1)), fence)

    def _time_and_controller(self, world: World, place: int, job: Job) -> Iterator[Step]:
        rules = self.protocol
        if job.lease == Lease.ALIVE:
            works = any(w is not None and (w.place, w.fence) == (place, job.fence) for w in world.workers)
            lapsed = self._put(world, place, job._replace(lease=Lease.LAPSED))
            yield Step(f"the lease of {place} lapses", Kind.FAULT if works else Kind.GOES_ON, lapsed)
        if job.backing_off:
            yield Step(
                f"back-off of {place} ends", Kind.GOES_ON, self._put(world, place, job._replace(backing_off=False))
            )
        if (expired := rules.expire(job)) is not None:
            yield Step(f"expire {place}", Kind.GOES_ON, self._put(world, place, expired))
        if world.relay is None and (taken := rules.take_message(job)) is not None:
            yield Step(
                f"take message of {place}", Kind.GOES_ON, self._put(world, place, taken)._replace(relay=Relay(place))
            )
        if job.message == Message.TAKEN:  # for too long: another relay may have it
            yield Step(
                f"hold of message {place} ends",
                Kind.GOES_ON,
                self._put(world, place, job._replace(message=Message.DUE)),
            )
        if (again := rules.redispatch(job)) is not None and world.hints < self.bounds.hints:
            yield Step(f"announce {place} again", Kind.GOES_ON, self._put(world, place, again))

    def _relaying(self, world: World, relay: Relay) -> Iterator[Step]:
        if not relay.published:
            hints = min(world.hints + 1, self.bounds.hints)
            yield Step("publish", Kind.GOES_ON, world._replace(hints=hints, relay=relay._replace(published=True)))
        else:
            marked = self.protocol.mark_sent(world.jobs[relay.place]) if relay.fresh else None
            after = world if marked is None else self._put(world, relay.place, marked)
            yield Step("mark sent", Kind.GOES_ON, after._replace(relay=None))
        if world.faults_left:
            yield Step("the controller dies", Kind.FAULT, _hurt(world)._replace(relay=None))

    def _people(self, world: World, place: int, job: Job) -> Iterator[Step]:
        rules = self.protocol
        if (resumed := rules.resume(job)) is not None:
            yield Step(f"resume {place}", Kind.GOES_ON, self._put(world, place, resumed))
        if not world.wishes_left:
            return
        world = world._replace(wishes_left=world.wishes_left - 1)
        for what, ask in (("cancel", rules.cancel), ("pause", rules.pause), ("stop", rules.stop)):
            if (asked := ask(job)) is not None:
                yield Step(f"{what} {place}", Kind.WISH, self._put(world, place, asked))

    def _put(self, world: World, place: int, job: Job) -> World:
        world = world._replace(jobs=self.protocol.put(world.jobs, place, job))
        relay = world.relay
        if relay is not None and relay.fresh and world.jobs[relay.place].message == Message.NONE:
            world = world._replace(relay=relay._replace(fresh=False))
        return world


def _hurt(world: World) -> World:
    return world._replace(faults_left=world.faults_left - 1)


def _work(world: World, number: int, worker: Worker | None) -> World:
    workers = list(world.workers)
    workers[number] = worker
    return world._replace(workers=tuple(workers))


def broken_by_step(before: World, step: Step) -> str | None:
    """The promise that this step breaks, if any."""
    after = step.after
    if after.saved is not before.saved and after.saved < before.saved:
        return "a checkpoint was lost"
    for old, new in zip(before.jobs, after.jobs, strict=True):
        if old is not new and (broken := _broken_by_change(before.jobs, old, new, step.fence)):
            return broken
    return None


def broken_in(world: World) -> str | None:
    """The promise that is broken in this state, if any."""
    holders = [worker.place for worker in world.workers if worker is not None and _holds(world, worker)]
    if len(holders) > len(set(holders)):
        return "two workers hold one job"
    return next(filter(None, (_broken_state(world.jobs, place) for place in range(len(world.jobs)))), None)


def _broken_by_change(jobs: Jobs, old: Job, new: Job, by: int | None) -> str | None:
    """`by` is the fence of the claim under which a worker made the change; None: someone else did."""
    moved, by_holder = old.status != new.status, by == old.fence
    if moved and old.status in TERMINAL:
        return "a job that had ended has moved"
    if old.status == Status.CANCELLING and new.status == Status.SUCCEEDED:
        return "a job succeeded after its cancel was accepted"
    if moved and (old.status, new.status) not in MOVES:
        return f"{old.status} -> {new.status} is no legal move"
    if new.fence < old.fence:
        return "a fence went back"
    if old.status in HELD and old.lease == Lease.ALIVE and not by_holder and _lost(old, new):
        return "a live lease was stolen"
    if new.status == Status.SUCCEEDED and not (by_holder and new.result_fence == old.fence):
        return "a result came from a claim that was lost"
    if new.told != old.told and not by_holder:
        return "the history has news from a claim that was lost"
    if new.status == Status.RUNNING and new.fence > old.fence:
        return _wrongly_claimed(jobs, old)
    if new.status == Status.QUEUED and moved:
        return _forgotten(old, new)
    return None


def _lost(old: Job, new: Job) -> bool:
    return new.fence != old.fence or new.status not in HELD


def _wrongly_claimed(jobs: Jobs, job: Job) -> str | None:
    if job.paused:
        return "a paused job was claimed"
    if job.backing_off:
        return "a job was claimed before its back-off had ended"
    return "a job was claimed before what it needs" if needs_left(jobs, job) else None


def _forgotten(old: Job, new: Job) -> str | None:
    if old.request == Request.PAUSE and not new.paused:
        return "a pause was forgotten"
    return "a stop was forgotten" if old.request == Request.STOP != new.request else None


def _broken_state(jobs: Jobs, place: int) -> str | None:
    job = jobs[place]
    if job.attempt > job.max_attempts:
        return "a job was tried too often"
    left = needs_left(jobs, job)
    waits = job.status == Status.QUEUED and not job.paused and left == 0
    if not waits == job.line == (job.message != Message.NONE):
        return "a job that can be claimed is in no line or not announced, or one that cannot is"
    if job.status != Status.QUEUED:
        return None
    if left != job.needs_left:
        return "a job waits for what has already ended"
    gone = [need for need in job.needs if jobs[need].status in (Status.FAILED, Status.CANCELLED)]
    return "a job waits for one that did not succeed" if gone else None


def _holds(world: World, worker: Worker) -> bool:
    job = world.jobs[worker.place]
    return job.status in HELD and job.fence == worker.fence


def normal(world: World) -> World:
    """One of the states from which the same can happen: workers are alike, and what has ended has no further past."""
    one, other = (_plain(world, worker) for worker in world.workers)
    workers = (one, other) if _order(one) <= _order(other) else (other, one)
    jobs, saved = world.jobs, world.saved
    for place, job in enumerate(jobs):
        if job.status in TERMINAL and not any(worker and worker.place == place for worker in workers):
            ended = Job(job.max_attempts, job.needs, status=job.status)
            jobs = (*jobs[:place], ended, *jobs[place + 1 :])
            saved = (*saved[:place], 0, *saved[place + 1 :])
    return World(jobs, saved, workers, *world[3:])


def _plain(world: World, worker: Worker | None) -> Worker | None:
    """A worker that has lost its claim does nothing about what it heard."""
    if worker is None or worker.heard is None or _holds(world, worker):
        return worker
    return worker._replace(heard=None)


def _order(worker: Worker | None) -> tuple[int, int, int, str]:
    return (-1, 0, 0, "") if worker is None else (worker.place, worker.fence, worker.step, worker.heard or "")


def explore(protocol: Protocol, bounds: Bounds) -> Findings:
    """Visit every state, breadth first; ends with the shortest way to a broken promise, if there is one."""
    checker, found = Checker(protocol, bounds), Findings()
    first = normal(checker.first)
    numbers, worlds = {first: 0}, [first]
    came: list[tuple[int, str]] = [(0, "")]
    goes_on: list[list[int]] = [[]]  # from where one comes to each state by itself
    here = 0
    while here < len(worlds):
        before = worlds[here]
        for step in checker.steps(before):
            found.steps += 1
            broken = broken_by_step(before, step)
            if step.after.jobs is not before.jobs:
                found.moves |= _moves(before, step.after)
            after = normal(step.after)
            there = numbers.setdefault(after, len(worlds))
            if there == len(worlds):
                worlds.append(after)
                came.append((here, step.what))
                goes_on.append([])
                broken = broken or broken_in(after)
            if broken:
                found.broken = f"{broken}: {_way(came, here)} > {step.what}"
                found.states = len(worlds)
                return found
            if step.kind is Kind.GOES_ON:
                goes_on[there].append(here)
        here += 1
    found.states = len(worlds)
    stuck = _cannot_end(worlds, goes_on)
    found.stuck, found.stuck_at = len(stuck), _way(came, stuck[0]) if stuck else None
    return found


def _moves(before: World, after: World) -> set[tuple[Status, Status]]:
    return {(a.status, b.status) for a, b in zip(before.jobs, after.jobs, strict=True) if a.status != b.status}


def _cannot_end(worlds: list[World], goes_on: list[list[int]]) -> list[int]:
    ends = [n for n, world in enumerate(worlds) if all(job.status in TERMINAL for job in world.jobs)]
    can_end = set(ends)
    while ends:
        before = [n for n in goes_on[ends.pop()] if n not in can_end]
        can_end.update(before)
        ends += before
    return [n for n in range(len(worlds)) if n not in can_end]


def _way(came: list[tuple[int, str]], here: int) -> str:
    steps = []
    while here:
        here, what = came[here]
        steps.append(what)
    return " > ".join(reversed(steps))
