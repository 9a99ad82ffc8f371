"""What `dsd profile` says of a step is what the training itself did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsd_core.errors import SpecError
from dsd_core.phases import Clock, Times, clocked, each_in_phase, phase
from dsd_core.profile import PHASES, profile
from dsd_core.spec import parse_spec
from tests.core.small import save_teacher, small_spec

CPU = torch.device("cpu")


def test_a_phase_is_told_without_the_phases_inside_it_and_all_add_up_to_the_whole() -> None:
    clock = Clock(CPU)
    with phase("before"):  # by no clock
        pass
    with clocked(clock):
        for items in each_in_phase("outer", (list(range(20_000)) for _ in range(3))):
            with phase("outer"):
                sum(items)
                with phase("inner"):
                    sorted(items, key=lambda item: -item)
        whole = clock.whole
    assert list(clock.phases) == ["outer", "inner"]
    told = sum(clock.phases.values(), start=Times())
    assert 0 < clock.phases["inner"].wall < whole.wall and 0 < clock.phases["outer"].wall < whole.wall
    assert told.wall <= whole.wall
    clock.restart()
    assert clock.phases == {} and clock.whole.wall < whole.wall


def test_a_phase_that_fails_is_told_too() -> None:
    clock = Clock(CPU)
    with clocked(clock), pytest.raises(ZeroDivisionError), phase("failing"), phase("inside"):
        _ = 1 / 0
    assert set(clock.phases) == {"failing", "inside"}
    with phase("after"):
        pass
    assert "after" not in clock.phases


@pytest.mark.parametrize("signals", ["off", "image"])
def test_the_phases_of_a_distilling_step_are_those_of_its_training_and_sum_to_the_step(signals, tmp_path) -> None:
    spec = small_spec(save_teacher(tmp_path), signals=signals, train__batch=4, baseline=True, seeds=[1, 2])
    found = profile(spec, steps=3)
    assert list(found.phases) == [name for name in PHASES if name != "signals" or signals == "image"]
    assert all(times.wall >= 0 for times in found.phases.values())
    assert set(found.losses) == {loss.term for loss in spec.losses}
    assert sum(times.wall for times in found.losses.values()) <= found.phases["losses"].wall * (1 + 1e-9)
    assert sum(found.shares().values()) == pytest.approx(1)
    assert found.flops_per_step > 0 and found.peak_flops_per_s > 0 and found.peak_memory_bytes > 10**8
    assert 0 < found.matmul_peak_share < 1
    assert found.limits and (found.teacher_passes is None) == (signals == "off")


@pytest.mark.slow
def test_a_step_in_parts_has_the_operations_of_a_whole_one() -> None:
    counts = {parts: profile(small_spec(train__batch=4, train__accumulate=parts), steps=1) for parts in (1, 2)}
    assert counts[1].flops_per_step == counts[2].flops_per_step > 0
    assert "teacher" not in counts[1].phases and counts[1].teacher_passes is None


def test_a_job_that_trains_nothing_has_nothing_to_profile() -> None:
    scoring = {"kind": "evaluate", "name": "x", "dataset": {"name": "streets"}, "student": {"model": "m"}}
    with pytest.raises(SpecError, match="trains nothing") as caught:
        profile(parse_spec(scoring))
    assert caught.value.field == "/kind"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "dsd_core", "profile", *arguments]
    return subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])


@pytest.mark.slow
def test_the_command_prints_a_table_or_one_json_object_and_leaves_nothing_behind(tmp_path) -> None:
    job = tmp_path / "job.json"
    job.write_text(small_spec(train__batch=4).model_dump_json())
    found = json.loads(run(str(job), "--steps", "2", "--json").stdout)
    assert found["steps"] == 2 and found["device"] in ("cpu", "cuda")
    assert set(found["phases"]) == {"data", "student", "losses", "backward", "optimizer", "other"}
    assert set(found["shares"]) == set(found["phases"]) and set(found["step"]) == {"wall", "cpu"}
    assert found["limits"] and found["flops_per_step"] > 0 and found["peak_memory_bytes"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"job.json"}
    text = run(str(job), "--steps", "1").stdout
    assert "backward" in text and "of what a matrix product does" in text and "Peak memory" in text


def test_a_job_file_that_is_none_is_answered_with_what_is_wrong(tmp_path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: x\nkind: train\n")
    failed = run(str(job))
    assert failed.returncode == SpecError.exit_code and "/dataset" in failed.stderr
