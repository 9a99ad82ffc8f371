"""What must hold after every fault, whatever it was. Each oracle yields one sentence for each broken promise.

O1 the history, O2 the ledger of what was acknowledged, O3 the weights, O4 what is left behind, O5 the answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import psutil
from sqlalchemy import Engine, select

from jobs import db
from jobs.status import MOVES, TERMINAL, Status
from jobs.tables import JobEventRow, JobRow, OutboxRow
from worker.launch import JOB_ID

LEGAL = MOVES | {(None, Status.QUEUED)}


@dataclass(frozen=True)
class Answer:
    """What the API answered; `outage` says that the test had something switched off."""

    request: str
    status: int
    outage: bool
    retry_after: str | None = None


def broken_histories(engine: Engine) -> Iterator[str]:
    """O1: legal moves only, one end, a fence that never falls, a result exactly where a job succeeded."""
    with db.reading(engine) as s:
        rows = {row.id: row for row in s.scalars(select(JobRow))}
        events = list(s.scalars(select(JobEventRow).order_by(JobEventRow.job_id, JobEventRow.seq)))
        announced = set(s.scalars(select(OutboxRow.job_id)))
    histories = {job_id: list(part) for job_id, part in groupby(events, lambda event: event.job_id)}
    for job_id, row in rows.items():
        history = histories.get(job_id, [])
        for broken in (*_gaps(row, history), *_wrong_moves(row, history), *_wrong_row(row, history)):
            yield f"{job_id}: {broken}"
        if row.status != Status.QUEUED and job_id in announced:
            yield f"{job_id}: it is {row.status} and still announced"


def wrong_ends(engine: Engine, ledger: Mapping[str, Collection[Status]]) -> Iterator[str]:
    """O2: every acknowledged job is there, and ended as it had to; no job is there that nobody submitted."""
    with db.reading(engine) as s:
        found = {
            id: (status, reason) for id, status, reason in s.execute(select(JobRow.id, JobRow.status, JobRow.reason))
        }
    for job_id, right in ledger.items():
        status, reason = found.get(job_id, ("lost", None))
        if status not in right:
            yield f"{job_id}: it is {status} ({reason}), not {' or '.join(sorted(right))}"
    for job_id in sorted(found.keys() - ledger.keys()):
        yield f"{job_id}: nobody submitted it"


def other_weights(golden: str, students: Mapping[str, Path]) -> Iterator[str]:
    """O3: the student of each job has the very bytes of the uninterrupted run."""
    for job_id, student in students.items():
        if digest(student) != golden:
            yield f"{job_id}: its weights differ from those of the uninterrupted run"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_behind(engine: Engine, runs: Path, ledger: Collection[str]) -> Iterator[str]:
    """O4: no process of a job, no half-written file, no checkpoint that no event speaks of."""
    for process in job_processes(ledger):
        yield f"process {process.pid} of a job is left"
    for job_id in ledger:
        folder = runs / job_id
        yield from (f"{job_id}: {path.relative_to(folder)} is left" for path in folder.rglob("*.tmp"))
        unknown = {f"checkpoints/{path.name}" for path in folder.glob("checkpoints/[0-9]*")}
        if unknown and (unknown := unknown - _checkpoints(engine, job_id)):
            yield f"{job_id}: no event speaks of {sorted(unknown)}"


def job_processes(ledger: Collection[str]) -> list[psutil.Process]:
    """The processes with the id of one of these jobs in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(JOB_ID) in ledger:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def wrong_answers(answers: Collection[Answer], log: str) -> Iterator[str]:
    """O5: no 500 at all; a 503 only while something was switched off, and with the time to try again."""
    for answer in answers:
        if answer.status == 500 or (answer.status > 500 and not (answer.outage and answer.retry_after)):
            yield f"{answer.request} was answered with {answer.status}, Retry-After {answer.retry_after}"
    yield from (f"the API logged {line}" for line in re.findall(r'"[A-Z]+ [^"]*" 500\b.*', log))


def _gaps(row: JobRow, history: list[JobEventRow]) -> Iterator[str]:
    if [event.seq for event in history] != list(range(1, row.last_seq + 1)):
        yield f"its history has other numbers than 1 to {row.last_seq}"


def _wrong_moves(row: JobRow, history: list[JobEventRow]) -> Iterator[str]:
    moves = [event.data for event in history if event.type == "status"]
    for move in moves:
        if (move["from"], move["to"]) not in LEGAL:
            yield f"{move['from']} -> {move['to']} is no legal move"
    for before, after in pairwise(moves):
        if before["to"] != after["from"]:
            yield f"it went to {before['to']} and then from {after['from']}"
        if after["fence"] < before["fence"] or (after["to"] == Status.RUNNING and after["fence"] == before["fence"]):
            yield f"its fence went from {before['fence']} to {after['fence']} with {after['to']}"
    if sum(move["to"] in TERMINAL for move in moves) > 1:
        yield "it ended more than once"
    if not moves or moves[-1]["to"] != row.status:
        yield f"it is {row.status}, which its history does not say"


def _wrong_row(row: JobRow, history: list[JobEventRow]) -> Iterator[str]:
    succeeded = row.status == Status.SUCCEEDED
    if (row.result is not None) is not succeeded or (row.result_fence is not None) is not succeeded:
        yield f"it is {row.status} and has {'a' if row.result else 'no'} result"
    claims = [e.data["fence"] for e in history if e.type == "status" and e.data["to"] == Status.RUNNING]
    if succeeded and [row.result_fence] != claims[-1:]:
        yield f"its result is of fence {row.result_fence}, but of those that had the job, {claims}, the last one counts"
    if row.attempt > row.max_attempts:
        yield f"it was tried {row.attempt} times, and {row.max_attempts} are allowed"
    if row.status in TERMINAL and (row.finished_at is None or row.lease_expires_at is not None):
        yield "it has ended, but for its times"


def _checkpoints(engine: Engine, job_id: str) -> set[str]:
    with db.reading(engine) as s:
        told = select(JobEventRow.data).where(JobEventRow.job_id == job_id, JobEventRow.type == "checkpoint")
        return {data["path"] for data in s.scalars(told)}
