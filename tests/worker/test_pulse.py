"""What counts as silence of a training process."""

from __future__ import annotations

from pathlib import Path

from tests.worker.service import until
from worker.pulse import LONGEST_LOOK_S, Pulse


def pulse_of(folder: Path, *, stall_s: float = 0.1, first_step_s: float = 0.1) -> Pulse:
    return Pulse(folder / "pulse", stall_s, first_step_s)


def test_a_process_may_take_longer_to_its_first_step_than_between_two(tmp_path: Path) -> None:
    pulse = pulse_of(tmp_path, first_step_s=60)
    until(lambda: not pulse.stands_still() and pulse.silent_s > 2 * pulse.stall_s)
    pulse.path.write_text("1")
    assert not pulse.stands_still() and pulse.began
    until(pulse.stands_still)


def test_a_process_that_never_begins_stands_still_in_the_end(tmp_path: Path) -> None:
    until(pulse_of(tmp_path).stands_still)


def test_a_process_that_is_slow_may_be_silent_for_twenty_of_its_steps(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "pulse", stall_s=300, first_step_s=1800, first_count=1, count=11, beating_s=1000.0)
    assert pulse.patience_s == 20 * 100
    pulse.beating_s = 10.0
    assert pulse.patience_s == 300


def test_the_pulse_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "pulse").write_text("7")
    pulse = pulse_of(tmp_path)
    assert not pulse.stands_still() and not pulse.began
    pulse.path.write_text("1")
    pulse.stands_still()
    assert pulse.began


def test_the_time_in_which_the_worker_itself_was_stopped_is_no_silence(tmp_path: Path) -> None:
    pulse = pulse_of(tmp_path, first_step_s=60)
    pulse._looked_at -= 3600
    assert not pulse.stands_still()
    assert pulse.silent_s == LONGEST_LOOK_S


def test_a_file_that_is_caught_half_written_says_nothing(tmp_path: Path) -> None:
    pulse = pulse_of(tmp_path, first_step_s=60)
    for text in ("", "seven", "-"):
        pulse.path.write_text(text)
        assert not pulse.stands_still() and not pulse.began
