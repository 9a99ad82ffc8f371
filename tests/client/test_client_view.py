"""What people see of a job: live, in a log, and at its end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from client.errors import ServiceAway
from client.report import result_table
from client.text import amount, duration, number, size
from client.view import JobView
from client.waiting import told
from tests.client import scenes


def seen(story: list[dict[str, Any]], *, terminal: bool) -> str:
    """Everything printed while a job's events arrive."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with JobView(console, "espnet  job_1") as view:
        view.follow(story)
    return out.getvalue()


def table(result: dict[str, Any]) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(result_table(result))
    return console.export_text()


def test_a_log_gets_plain_lines_without_control_characters() -> None:
    text = seen(scenes.run(), terminal=False)
    assert "\x1b" not in text and "\r" not in text
    assert "step 60/100" in text and "45 img/s" in text and "1 min 23 s left" in text
    assert "csd nan" in text and "psd 1.00e-05" in text
    assert text.count("mIoU") == 3


def test_a_terminal_gets_bars_for_every_phase_and_the_lines_above_them() -> None:
    text = seen(scenes.run(), terminal=True)
    last_frame = text[text.rindex("prepare") :]
    for phase in ("without teacher", "student", "export"):
        assert phase in last_frame
    assert "100/100" in last_frame
    assert "The class pole is rare." in text


def test_a_history_that_is_played_back_shows_the_durations_of_then() -> None:
    story = scenes.run()
    for minutes, event in enumerate(story):
        event["at"] = f"2026-01-02T03:{minutes:02d}:00Z"
    last_frame = seen(story, terminal=True).rsplit("prepare", 1)[1]
    assert "in 2 min 00 s" in last_frame and "in 5 min 00 s" in last_frame


def test_the_view_keeps_the_result_and_the_failure() -> None:
    view = JobView(Console(file=io.StringIO()), "")
    view.follow(scenes.run())
    assert view.result is not None and view.result["gain"] == 0.03
    view.follow([{"type": "failed", "code": "invalid_data", "message": "no folder", "hint": None, "field": None}])
    assert view.error is not None and view.error["message"] == "no folder"


def test_events_of_the_api_and_of_a_run_folder_look_the_same() -> None:
    story = scenes.run()
    of_api = [{"seq": n, "at": event["at"], "type": event["type"], "data": event} for n, event in enumerate(story)]
    assert seen(of_api, terminal=False) == seen(story, terminal=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"from": "queued", "to": "running", "worker": "gpu-1", "attempt": 1}, "running  on gpu-1"),
        ({"from": "running", "to": "queued", "reason": "worker_lost", "attempt": 2}, "worker lost  attempt 2"),
        ({"from": "running", "to": "cancelled", "reason": "cancelled_by_user", "attempt": 1}, "cancelled"),
    ],
)
def test_moves_of_the_status_are_told(data: dict[str, Any], said: str) -> None:
    assert said in seen([{"type": "status", "seq": 1, "at": scenes.AT, "data": data}], terminal=False)


def test_the_table_compares_teacher_baseline_and_student() -> None:
    text = table(scenes.result())
    for figure in ("0.6500", "0.5200", "0.5500", "364 k", "13.0 M", "1.20 G", "12.5 ms", "1.70 MB", "+0.0300"):
        assert figure in text
    assert "35.7x fewer parameters" in text


def test_a_teacher_whose_cost_is_unknown_stands_beside_baseline_and_student() -> None:
    text = table(scenes.result(teacher_cost=None))
    assert "0.6500" in text and "0.5200" in text and "0.5500" in text
    assert "without teacher" in text and "Compared" not in text


def test_a_loss_by_distillation_is_shown_as_one() -> None:
    text = table(scenes.result(gain=-0.012))
    assert "-0.0120 mIoU" in text and "did not help" in text


def test_a_student_without_teacher_has_no_gain() -> None:
    text = table(scenes.result(teacher=None, teacher_cost=None, baseline=None, gain=None))
    assert "Gain" not in text and "teacher" not in text and "0.5500" in text


def test_a_student_that_was_only_scored_has_its_figures_and_no_files() -> None:
    alone = {"teacher": None, "teacher_cost": None, "baseline": None, "gain": None}
    text = table(scenes.result(files=[], onnx_max_error=None, **alone))
    assert "0.5500" in text and "364 k" in text and "Files" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_job_that_trains_nothing_is_told_without_steps(terminal: bool) -> None:
    started, evaluated = scenes.run()[0] | {"total_steps": 0}, scenes.run()[-2] | {"step": 0, "total_step": 0}
    text = seen([started, evaluated, scenes.run()[-1]], terminal=terminal)
    assert "starts on cpu" in text and "0.5500" in text and "60 images" in text
    assert "step" not in text and ("prepare" in text) == terminal


def test_several_seeds_are_shown_with_mean_and_spread() -> None:
    text = table(scenes.result_of_seeds())
    for figure in ("mIoU of 2 seeds", "0.5600 ± 0.0141", "0.5250 ± 0.0071", "+0.0350 ± 0.0072 mIoU", "mean of 2 seeds"):
        assert figure in text
    assert "seeds" not in table(scenes.result())


def test_class_accuracy_and_boundary_iou_are_shown_where_they_are_known() -> None:
    known = scenes.SCORE | {"miou": 0.55, "class_accuracy": 0.61, "boundary_iou": 0.33}
    text = table(scenes.result(student=known))
    assert "class accuracy" in text and "0.6100" in text and "boundary IoU" in text and "0.3300" in text
    assert "boundary" not in table(scenes.result())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_further_seed_is_named_where_its_training_and_scores_are_shown(terminal: bool) -> None:
    scored = dict(
        type="evaluated", subject="student", step=9, total_step=18, miou=0.5, pixel_accuracy=0.9, at=scenes.AT
    )
    story = [
        scenes.progress("student", 9, 9, 9),
        scenes.progress("student", 9, 9, 18, seed=7),
        scored | dict(seed=7, per_class_iou={}, images=1, seconds=0.1),
    ]
    text = seen(story, terminal=terminal)
    assert text.count("student, seed 7") >= 2 and "0.5000" in text
    assert ("export" in text[text.rindex("student, seed 7") :]) == terminal


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(3.25), "3.2 s"), (duration(59.7), "1 min 00 s"), (duration(3900), "1 h 05 min"),
        (amount(940), "940"), (amount(999_999), "1.00 M"), (amount(12_345_678_901), "12.3 G"),
        (size(812), "812 B"), (size(1_480_000), "1.48 MB"),
        (number(0.0), "0"), (number(None), "nan"), (number(0.00012), "1.20e-04"),
    ],
)  # fmt: skip
def test_numbers_are_short(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"request": "pause"}, "asked    to pause"),
        ({"request": "resume"}, "asked    to go on"),
        ({"request": "stop"}, "asked    to stop and keep the best"),
        ({"request": "priority", "priority": 5}, "asked    for priority 5"),
        ({"request": "labels", "labels": {"team": "maps"}}, "asked    for the labels team=maps"),
        ({"request": "something new"}, "asked    to something new"),
    ],
)
def test_what_people_ask_of_a_job_is_told(data: dict[str, Any], said: str) -> None:
    for terminal in (False, True):
        assert said in seen([{"type": "request", "seq": 2, "at": scenes.AT, "data": data}], terminal=terminal)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_watcher_hears_what_a_queued_job_waits_for_until_it_runs(terminal: bool) -> None:
    """Each look finds the job elsewhere; the events come when the looks have been taken."""
    answers = [{"waiting_for": what, "queue_position": 2} for what in ("paused", "worker", "worker", "slot")]
    looked, out = Event(), io.StringIO()

    def look() -> dict[str, Any]:
        if len(answers) == 1:
            looked.set()
            raise ServiceAway("http://here")
        return answers.pop(0)

    def events() -> Iterator[dict[str, Any]]:
        assert looked.wait(30)
        yield {"type": "status", "seq": 1, "at": scenes.AT, "data": {"to": "running", "worker": "one", "attempt": 1}}

    console = Console(file=out, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with JobView(console, "espnet  job_1") as view, told(view, look, every_s=0.001):
        view.follow(events())
    text = out.getvalue()
    assert text.index("paused") < text.index("no worker that is there") < text.index("running")
    assert terminal or text.count("no worker that is there") == 1
    assert "place 2" not in text
