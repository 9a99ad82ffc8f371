"""Why a job ended, from what the process left behind."""

from __future__ import annotations

from typing import Any

import pytest

from dsd_core import errors
from dsd_core.errors import DsdError
from jobs.status import Reason
from worker.outcome import Ending, outcome, over_memory, over_time, stalled

FINISHED = {"type": "finished", "result": {}}


def failed(code: str) -> dict[str, Any]:
    return {"type": "failed", "code": code, "message": "what", "hint": "do", "field": "/train"}


def test_a_finished_event_and_exit_zero_is_a_success() -> None:
    assert outcome(0, FINISHED, None) == (Reason.FINISHED, None)


def test_a_success_counts_even_after_a_request_to_stop() -> None:
    assert outcome(0, FINISHED, Ending(Reason.RELEASED)) == (Reason.FINISHED, None)
    assert outcome(0, FINISHED, over_time()) == (Reason.FINISHED, None)


def test_exit_zero_without_a_result_is_no_success() -> None:
    reason, error = outcome(0, None, None)
    assert reason == Reason.INTERNAL
    assert error is not None and "without a result" in error["message"]


NAMED = [cls for cls in vars(errors).values() if isinstance(cls, type) and getattr(cls, "code", "") in set(Reason)]


@pytest.mark.parametrize("cls", NAMED)
def test_every_error_class_is_known_by_its_exit_code_and_by_its_event(cls: type[DsdError]) -> None:
    assert outcome(cls.exit_code, None, None)[0] == Reason(cls.code)
    reason, error = outcome(cls.exit_code, failed(cls.code), None)
    assert reason == Reason(cls.code)
    assert error == {"code": cls.code, "message": "what", "hint": "do", "field": "/train"}


def test_an_event_says_more_than_the_exit_code() -> None:
    assert outcome(70, failed("out_of_memory"), None)[0] == Reason.OUT_OF_MEMORY


def test_a_code_nobody_knows_falls_back_to_the_exit_code() -> None:
    assert outcome(65, failed("new_in_the_next_version"), None)[0] == Reason.INVALID_DATA
    assert outcome(3, failed("new_in_the_next_version"), None)[0] == Reason.INTERNAL


def test_exit_75_is_a_release_whoever_asked() -> None:
    assert outcome(75, None, None) == (Reason.RELEASED, None)
    assert outcome(75, None, Ending(Reason.RELEASED)) == (Reason.RELEASED, None)


def test_a_child_killed_after_the_grace_is_still_a_release() -> None:
    assert outcome(-9, None, Ending(Reason.RELEASED)) == (Reason.RELEASED, None)


def test_a_kill_that_was_not_ours_points_at_the_memory() -> None:
    reason, error = outcome(-9, None, None)
    assert reason == Reason.OOM_SUSPECTED
    assert error is not None and "memory" in error["message"] and "train.batch" in error["hint"]


def test_a_segmentation_fault_is_called_by_its_name() -> None:
    reason, error = outcome(-11, None, None)
    assert reason == Reason.CRASHED
    assert error is not None and "SIGSEGV" in error["message"]


@pytest.mark.parametrize("exit_code", [75, -9, -15, 1, 70])
def test_a_cancelled_job_is_cancelled_however_its_process_ended(exit_code: int) -> None:
    assert outcome(exit_code, failed("internal"), Ending(Reason.CANCELLED_BY_USER)) == (Reason.CANCELLED_BY_USER, None)


def test_running_too_long_names_the_field() -> None:
    reason, error = outcome(75, None, over_time())
    assert reason == Reason.MAX_RUNTIME
    assert error is not None and error["field"] == "/max_runtime_s"


def test_a_failure_of_its_own_counts_more_than_our_shutdown() -> None:
    assert outcome(77, failed("diverged"), Ending(Reason.RELEASED))[0] == Reason.DIVERGED


def test_a_job_that_is_paused_is_paused_unless_it_has_just_finished() -> None:
    assert outcome(75, None, Ending(Reason.PAUSED)) == (Reason.PAUSED, None)
    assert outcome(-9, None, Ending(Reason.PAUSED)) == (Reason.PAUSED, None)
    assert outcome(0, FINISHED, Ending(Reason.PAUSED)) == (Reason.FINISHED, None)


def test_a_job_that_was_asked_to_stop_says_so_when_it_has_a_result() -> None:
    assert outcome(0, FINISHED, Ending(Reason.STOPPED_EARLY)) == (Reason.STOPPED_EARLY, None)
    assert outcome(70, failed("nothing_to_keep"), Ending(Reason.STOPPED_EARLY))[0] == Reason.NOTHING_TO_KEEP


def test_what_we_killed_for_says_why_and_what_to_do() -> None:
    for ending in (stalled(301.2), over_memory(3 * 2**30, 2.0)):
        reason, error = outcome(-9, None, ending)
        assert reason == ending.reason and error is not None and error["hint"]
    assert "301 s" in (stalled(301.2).error or {})["message"]
    assert "3.00 GiB" in (over_memory(3 * 2**30, 2.0).error or {})["message"]


def test_of_several_processes_the_event_says_what_the_exit_code_cannot() -> None:
    assert outcome(1, failed("diverged"), None, processes=2)[0] == Reason.DIVERGED
    assert outcome(1, None, Ending(Reason.RELEASED), processes=2) == (Reason.RELEASED, None)
    assert outcome(1, None, None, processes=2)[0] == Reason.CRASHED
