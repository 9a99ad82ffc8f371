"""Why a training process ended, from its exit code, its last words, and what we had asked of it. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, Literal

from dsd_core import errors
from dsd_core.errors import DsdError, Interrupted
from jobs.status import Reason

Asked = Literal[
    Reason.CANCELLED_BY_USER,
    Reason.MAX_RUNTIME,
    Reason.STALLED,
    Reason.OUT_OF_MEMORY,
    Reason.RELEASED,
    Reason.PAUSED,
    Reason.STOPPED_EARLY,
]
Error = dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """Why this worker ends a training process, and what to tell people where that is a failure."""

    reason: Asked
    error: Error | None = None


GIB = 2**30
REASON_OF_CODE: dict[str, Reason] = {reason.value: reason for reason in Reason} | {Interrupted.code: Reason.RELEASED}
BY_EXIT_CODE: dict[int, Reason] = {
    cls.exit_code: REASON_OF_CODE[cls.code]
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, DsdError)
}
SMALLER = "Choose a smaller train.batch, train.augment.crop or train.loaders"
HINTS: dict[Reason, str] = {
    Reason.OOM_SUSPECTED: f"{SMALLER}, or ask for a worker with enough by resources.memory_gib.",
    Reason.OUT_OF_MEMORY: f"{SMALLER}, or raise resources.memory_gib.",
    Reason.STALLED: "The log ends with what each thread was doing: a file that does not answer, or a lock.",
    Reason.CRASHED: "The log may say more; a library that was built for another machine is a common cause.",
    Reason.INTERNAL: "See the log; this is a fault of the service or of its installation.",
    Reason.MAX_RUNTIME: "Raise max_runtime_s, or choose fewer train.epochs; the last checkpoint is kept.",
}


def outcome(
    exit_code: int, last: dict[str, Any] | None, ending: Ending | None, *, processes: int = 1
) -> tuple[Reason, Error | None]:
    """`last` is the finished or failed event of this attempt, `ending` why we ended it.

    A success counts even when it came after we asked; whether it still may count is the store's decision. Of several
    processes only the exit code of the one that has started them is known, so that the event alone says more.
    """
    finished = last is not None and last["type"] == "finished"
    failed = last if last is not None and last["type"] == "failed" else None
    asked = None if ending is None else ending.reason
    if exit_code == 0 and finished:
        return (Reason.STOPPED_EARLY if asked == Reason.STOPPED_EARLY else Reason.FINISHED), None
    if ending is not None and (ending.error is not None or asked == Reason.CANCELLED_BY_USER):
        return ending.reason, ending.error
    if failed is not None:
        return _named(failed, exit_code), {key: failed.get(key) for key in ("code", "message", "hint", "field")}
    if asked in (Reason.RELEASED, Reason.PAUSED):
        return asked, None
    if BY_EXIT_CODE.get(exit_code) == Reason.RELEASED:
        return Reason.RELEASED, None
    return _without_a_word(exit_code) if processes == 1 else _one_of(processes)


def over_time() -> Ending:
    return Ending(
        Reason.MAX_RUNTIME,
        _error(Reason.MAX_RUNTIME, "The job ran longer than its max_runtime_s.", field="/max_runtime_s"),
    )


def stalled(silent_s: float) -> Ending:
    said = f"The training process did nothing for {silent_s:.0f} s."
    return Ending(Reason.STALLED, _error(Reason.STALLED, said))


def over_memory(taken_bytes: int, limit_gib: float) -> Ending:
    said = f"The training process took {taken_bytes / GIB:.2f} GiB of RAM; the job asked for {limit_gib:g} GiB."
    return Ending(Reason.OUT_OF_MEMORY, _error(Reason.OUT_OF_MEMORY, said, field="/resources/memory_gib"))


def _named(failed: dict[str, Any], exit_code: int) -> Reason:
    """The reason the process gave, unless it gave one we do not know."""
    return REASON_OF_CODE.get(failed["code"]) or BY_EXIT_CODE.get(exit_code, Reason.INTERNAL)


def _without_a_word(exit_code: int) -> tuple[Reason, Error]:
    if exit_code == -signal.SIGKILL:
        cause = "The training process was killed from outside; most likely the machine ran out of memory."
        return Reason.OOM_SUSPECTED, _error(Reason.OOM_SUSPECTED, cause)
    if exit_code < 0:
        return Reason.CRASHED, _error(Reason.CRASHED, f"The training process died of {_signal_name(-exit_code)}.")
    reason = BY_EXIT_CODE.get(exit_code, Reason.INTERNAL)
    said = "ended without a result" if exit_code == 0 else f"ended with exit code {exit_code} and named no cause"
    return reason, _error(reason, f"The training process {said}.")


def _one_of(processes: int) -> tuple[Reason, Error]:
    said = f"One of the {processes} training processes died and named no cause."
    return Reason.CRASHED, _error(Reason.CRASHED, said)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(reason: Reason, message: str, field: str | None = None) -> Error:
    return {"code": reason.value, "message": message, "hint": HINTS.get(reason), "field": field}
