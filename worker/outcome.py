"""Why a training process ended, from its exit code, its last words, and what we had asked of it. Pure."""

from __future__ import annotations

import signal
from typing import Any, Literal

from dsd_core import errors
from dsd_core.errors import DsdError, Interrupted
from jobs.status import Reason

Asked = Literal[Reason.CANCELLED_BY_USER, Reason.RELEASED, Reason.MAX_RUNTIME]
Error = dict[str, Any]

REASON_OF_CODE: dict[str, Reason] = {reason.value: reason for reason in Reason} | {Interrupted.code: Reason.RELEASED}
BY_EXIT_CODE: dict[int, Reason] = {
    cls.exit_code: REASON_OF_CODE[cls.code]
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, DsdError)
}
HINTS: dict[Reason, str] = {
    Reason.CRASHED: "Choose a smaller train.batch, train.augment.crop or train.loaders; the log may say more.",
    Reason.INTERNAL: "See the log; this is a fault of the service or of its installation.",
    Reason.MAX_RUNTIME: "Raise max_runtime_s, or choose fewer train.epochs; the last checkpoint is kept.",
}


def outcome(exit_code: int, last: dict[str, Any] | None, asked: Asked | None) -> tuple[Reason, Error | None]:
    """`last` is the finished or failed event of this attempt, `asked` why we told the process to stop.

    A success counts even when it came after we asked; whether it still may count is the store's decision.
    """
    finished = last is not None and last["type"] == "finished"
    failed = last if last is not None and last["type"] == "failed" else None
    if exit_code == 0 and finished:
        return Reason.FINISHED, None
    if asked == Reason.CANCELLED_BY_USER:
        return asked, None
    if asked == Reason.MAX_RUNTIME:
        return asked, _error(asked, "The job ran longer than its max_runtime_s.", field="/max_runtime_s")
    if failed is not None:
        return _named(failed, exit_code), {key: failed.get(key) for key in ("code", "message", "hint", "field")}
    if asked == Reason.RELEASED or BY_EXIT_CODE.get(exit_code) == Reason.RELEASED:
        return Reason.RELEASED, None
    return _without_a_word(exit_code)


def _named(failed: dict[str, Any], exit_code: int) -> Reason:
    """The reason the process gave, unless it gave one we do not know."""
    return REASON_OF_CODE.get(failed["code"]) or BY_EXIT_CODE.get(exit_code, Reason.INTERNAL)


def _without_a_word(exit_code: int) -> tuple[Reason, Error]:
    if exit_code == -signal.SIGKILL:
        cause = "The training process was killed from outside; most likely the machine ran out of memory."
        return Reason.CRASHED, _error(Reason.CRASHED, cause)
    if exit_code < 0:
        return Reason.CRASHED, _error(Reason.CRASHED, f"The training process died of {_signal_name(-exit_code)}.")
    reason = BY_EXIT_CODE.get(exit_code, Reason.INTERNAL)
    said = "ended without a result" if exit_code == 0 else f"ended with exit code {exit_code} and named no cause"
    return reason, _error(reason, f"The training process {said}.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error(reason: Reason, message: str, field: str | None = None) -> Error:
    return {"code": reason.value, "message": message, "hint": HINTS.get(reason), "field": field}
