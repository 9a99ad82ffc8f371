"""`dsd table`: finished jobs become rows that may be compared, and folders that cannot be used are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.comparison import Row, compare
from dsd_core.distill.presets import PRESETS
from dsd_core.errors import DataError
from dsd_core.events import Result
from dsd_core.spec import parse_spec
from dsd_core.spread import over_seeds
from tests.client import scenes
from tests.client.scenes import SCORE

TAUGHT: dict[str, Any] = {"kind": "distill", "losses": "dsd", "teacher": {"weights": "/teacher.safetensors"}}
PLAIN: dict[str, Any] = {"kind": "train", "losses": "plain"}


def save_job(
    folder: Path,
    mious: dict[int, float],
    *,
    baselines: dict[int, float] | None = None,
    step_ms: float = 10.0,
    **spec: Any,
) -> Path:
    """A finished job of these seeds and mIoUs in `folder`, as the training process leaves it."""
    folder.mkdir(parents=True)
    whole = parse_spec(
        {
            "name": folder.name,
            "dataset": {"name": "streets"},
            "student": {"network": "espnet"},
            "seeds": list(mious),
            "baseline": baselines is not None,
            **spec,
        }
    )
    step = {"steps": 100, "seconds_per_step": 1.0, "cpu_seconds_per_step": step_ms / 1000, "device": "cpu"}
    seeds = []
    for seed, miou in mious.items():
        found: dict[str, Any] = {"seed": seed, "student": SCORE | {"miou": miou}}
        if baselines is not None:
            found |= {"baseline": SCORE | {"miou": baselines[seed]}, "gain": miou - baselines[seed]}
        seeds.append(found)
    first = seeds[0]
    changes = {
        "student": first["student"],
        "baseline": first.get("baseline"),
        "gain": first.get("gain"),
        "seeds": seeds,
        "step_cost": step,
        "baseline_step_cost": step | {"cpu_seconds_per_step": 0.005} if baselines else None,
        "teacher_digest": "t" * 64 if whole.teacher else None,
        "spec_digest": whole.digest(),
    }
    result = Result.model_validate(scenes.result(**changes))
    result = result.model_copy(update=over_seeds(result.seeds))
    (folder / "spec.json").write_text(whole.model_dump_json())
    (folder / "result.json").write_text(result.model_dump_json())
    return folder


def rows(*folders: Path) -> dict[str, Row]:
    comparisons, _ = compare(folders)
    assert len(comparisons) == 1
    return {row.method: row for row in comparisons[0].rows}


def test_a_job_with_a_baseline_is_two_rows_with_the_gain_between_them(tmp_path: Path) -> None:
    save_job(tmp_path / "a", {0: 0.55, 1: 0.58}, baselines={0: 0.50, 1: 0.51}, **TAUGHT)
    found = rows(tmp_path)
    assert list(found) == ["no teacher", "dsd"]
    dsd, plain = found["dsd"], found["no teacher"]
    assert dsd.seeds == plain.seeds == (0, 1)
    assert dsd.miou_mean == pytest.approx(0.565) and dsd.miou_spread == pytest.approx(0.03 / 2**0.5)
    assert dsd.gain_mean == pytest.approx(0.06) and dsd.gain_spread == pytest.approx(0.02**0.5 / 10)
    assert plain.miou_mean == pytest.approx(0.505) and plain.gain_mean is None
    assert (dsd.step_ms, dsd.step_ratio) == (pytest.approx(10.0), pytest.approx(2.0))
    assert (plain.step_ms, plain.step_ratio) == (pytest.approx(5.0), None)
    assert dsd.params == 364_000 and dsd.flops == 1_200_000_000 and dsd.student == "espnet"


def test_a_job_that_trained_nothing_is_passed_over_and_named(tmp_path: Path) -> None:
    save_job(tmp_path / "plain", {0: 0.50}, **PLAIN)
    save_job(tmp_path / "scored", {0: 0.9}, kind="evaluate", student={"model": "plain/1"}, seeds=[])
    comparisons, notes = compare([tmp_path])
    assert [row.miou_mean for comparison in comparisons for row in comparison.rows] == [0.50]
    assert [note.message for note in notes] == ["A job of kind evaluate has trained nothing to compare."]


def test_jobs_that_differ_in_the_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed, miou in ((0, 0.5), (1, 0.6), (4, 0.7)):
        train = {"seed": seed, "threads": seed + 1, "log_every": 5 + seed}
        save_job(tmp_path / f"seed-{seed}", {seed: miou}, seeds=[], train=train, labels={"seed": str(seed)}, **TAUGHT)
    found = rows(tmp_path)
    assert list(found) == ["dsd"] and found["dsd"].seeds == (0, 1, 4)
    assert found["dsd"].miou_mean == pytest.approx(0.6) and found["dsd"].miou_spread == pytest.approx(0.1)


def test_a_job_without_teacher_is_what_others_gain_over_seed_by_seed(tmp_path: Path) -> None:
    save_job(tmp_path / "plain", {0: 0.50, 1: 0.52}, step_ms=4.0, **PLAIN)
    save_job(tmp_path / "kd", {1: 0.53, 2: 0.90}, **TAUGHT | {"losses": "kd"})
    kd = rows(tmp_path)["kd"]
    assert kd.gain_mean == pytest.approx(0.01) and kd.gain_spread is None and kd.gain_seeds == (1,)
    assert kd.step_ratio == pytest.approx(2.5)
    printed = CliRunner().invoke(app, ["table", str(tmp_path), "--markdown"]).stdout
    assert "+0.0100 (1 of 2 seeds)" in printed


def test_the_gain_is_over_the_same_losses_without_the_teacher(tmp_path: Path) -> None:
    weighted = {"loss": "ce", "class_weights": "log"}
    save_job(tmp_path / "plain", {0: 0.50}, **PLAIN)
    save_job(tmp_path / "weighted", {0: 0.55}, **TAUGHT | {"losses": [weighted, *PRESETS["kd"][1:]]})
    assert rows(tmp_path)["kd"].gain_mean is None
    save_job(tmp_path / "weighted-plain", {0: 0.53}, kind="train", losses=[weighted])
    found = rows(tmp_path)
    assert found["kd"].gain_mean == pytest.approx(0.02)
    assert sorted(found) == ["kd", "no teacher: ce: plain", "no teacher: ce: weighted-plain"]


def test_losses_that_are_no_preset_are_spelt_out(tmp_path: Path) -> None:
    losses = [{"loss": "ce"}, {"loss": "psd"}, {"loss": "csd", "weight": 2.5}]
    save_job(tmp_path / "own", {0: 0.5}, **TAUGHT | {"losses": losses})
    assert list(rows(tmp_path)) == ["ce + psd + 2.5 csd"]


def test_other_data_or_another_schedule_is_another_comparison_that_says_in_what(tmp_path: Path) -> None:
    save_job(tmp_path / "slow", {0: 0.5}, train={"learning_rate": 0.001}, **PLAIN)
    save_job(tmp_path / "fast", {0: 0.5}, train={"learning_rate": 0.01}, **PLAIN)
    comparisons, _ = compare([tmp_path])
    titles = sorted(comparison.title for comparison in comparisons)
    assert titles == ["streets, 40 epochs, train.learning_rate 0.001", "streets, 40 epochs, train.learning_rate 0.01"]


def test_students_are_rows_of_one_comparison_each_with_its_own_gain(tmp_path: Path) -> None:
    for network in ("espnet", "fpn:resnet18"):
        folder = save_job(
            tmp_path / network.replace(":", "-"), {0: 0.6}, baselines={0: 0.5}, student={"network": network}, **TAUGHT
        )
        result = json.loads((folder / "result.json").read_text())
        result["student_cost"]["network"] = network
        (folder / "result.json").write_text(json.dumps(result))
    comparisons, _ = compare([tmp_path])
    found = [(row.student, row.method, row.gain_mean) for row in comparisons[0].rows]
    gain = pytest.approx(0.1)
    assert found == [
        ("espnet", "no teacher", None),
        ("espnet", "dsd", gain),
        ("fpn:resnet18", "no teacher", None),
        ("fpn:resnet18", "dsd", gain),
    ]


def test_students_of_one_name_and_other_sizes_stay_apart(tmp_path: Path) -> None:
    for wide, params in ((1, 100), (2, 200)):
        network = {"name": "espnet", "options": {"p": wide}}
        folder = save_job(
            tmp_path / f"p{wide}", {0: 0.5 + wide / 10}, baselines={0: 0.5}, student={"network": network}, **TAUGHT
        )
        result = json.loads((folder / "result.json").read_text())
        result["student_cost"]["params"] = params
        (folder / "result.json").write_text(json.dumps(result))
    comparisons, _ = compare([tmp_path])
    found = [(row.params, row.method, row.miou_mean) for row in comparisons[0].rows]
    assert found == [(100, "no teacher", 0.5), (100, "dsd", 0.6), (200, "no teacher", 0.5), (200, "dsd", 0.7)]


def test_times_of_unlike_devices_are_not_compared(tmp_path: Path) -> None:
    save_job(tmp_path / "plain", {0: 0.5}, **PLAIN)
    result_file = save_job(tmp_path / "dsd", {0: 0.6}, **TAUGHT) / "result.json"
    result = json.loads(result_file.read_text())
    result["step_cost"]["device"] = "cuda"
    result_file.write_text(json.dumps(result))
    found = rows(tmp_path)
    assert found["dsd"].step_ms == pytest.approx(1000.0), "on a GPU the time on the wall counts"
    assert found["dsd"].step_ratio is None and found["no teacher"].step_ms == pytest.approx(10.0)


def test_the_same_seed_twice_counts_once_and_is_noted(tmp_path: Path) -> None:
    save_job(tmp_path / "a", {0: 0.5}, **PLAIN)
    save_job(tmp_path / "b", {0: 0.9}, **PLAIN)
    comparisons, notes = compare([tmp_path, tmp_path / "a"])
    assert comparisons[0].rows[0].miou_mean == 0.5
    assert [Path(note.folder).name for note in notes] == ["b"] and "Seed 0" in notes[0].message


def test_folders_that_cannot_be_used_are_named_with_the_reason_and_the_others_compared(tmp_path: Path) -> None:
    save_job(tmp_path / "good", {0: 0.5}, **PLAIN)
    (save_job(tmp_path / "deep" / "unfinished", {0: 0.5}, **PLAIN) / "result.json").unlink()
    (save_job(tmp_path / "unknown", {0: 0.5}, **PLAIN) / "spec.json").unlink()
    (save_job(tmp_path / "torn", {0: 0.5}, **PLAIN) / "result.json").write_text('{"student": ')
    (save_job(tmp_path / "odd", {0: 0.5}, **PLAIN) / "result.json").write_text("{}")
    (save_job(tmp_path / "alien", {0: 0.5}, **PLAIN) / "spec.json").write_text('{"name": "x", "colour": 1}')
    changed = save_job(tmp_path / "changed", {7: 0.5}, **PLAIN) / "spec.json"
    changed.write_text(changed.read_text().replace('"name":"changed"', '"name":"other"'))
    comparisons, notes = compare([tmp_path])
    assert comparisons[0].rows[0].seeds == (0, 7)
    told = {Path(note.folder).name: note.message for note in notes}
    assert told.keys() == {"unfinished", "unknown", "torn", "odd", "alien", "changed"}
    assert "has not finished" in told["unfinished"] and "no spec.json" in told["unknown"]
    assert "cannot be read" in told["torn"] and "/student: Field required" in told["odd"]
    assert "/colour" in told["alien"] and "not as it was" in told["changed"]


def test_a_result_of_an_older_version_is_one_seed_of_unknown_cost(tmp_path: Path) -> None:
    folder = save_job(tmp_path / "old", {5: 0.5}, baselines={5: 0.4}, seeds=[], train={"seed": 5}, **TAUGHT)
    new = {name for name in Result.model_fields if name == "seeds" or name.endswith(("_mean", "_spread", "step_cost"))}
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({name: value for name, value in result.items() if name not in new}))
    dsd = rows(tmp_path)["dsd"]
    assert dsd.seeds == (5,) and dsd.gain_mean == pytest.approx(0.1) and dsd.step_ms is None


@pytest.mark.parametrize(("name", "said"), [("nothing", "There is no folder"), ("", "There is no finished job")])
def test_nothing_to_compare_is_an_error_that_says_why(name: str, said: str, tmp_path: Path) -> None:
    (save_job(tmp_path / "unfinished", {0: 0.5}, **PLAIN) / "result.json").unlink()
    with pytest.raises(DataError, match=said):
        compare([tmp_path / name])


def test_the_command_prints_a_table_markdown_or_json(tmp_path: Path) -> None:
    save_job(tmp_path / "a", {0: 0.55, 1: 0.58}, baselines={0: 0.50, 1: 0.51}, **TAUGHT)
    command = [sys.executable, "-m", "client.cli", "table", str(tmp_path)]
    printed = {
        option: subprocess.run([*command, *option.split()], capture_output=True, text=True, check=True).stdout
        for option in ("", "--markdown", "--json")
    }
    figures = ["2", "0.5650 ± 0.0212", "+0.0600 ± 0.0141", "10.0 ms", "2.00"]
    assert f"| {' | '.join(['espnet', 'dsd', '364 k', '1.20 G', *figures])} |" in printed["--markdown"]
    assert printed["--markdown"].startswith("## streets, 40 epochs\n\n| student | method |")
    assert "streets, 40 epochs" in printed[""] and "espnet: 364 k parameters, 1.20 G FLOPs" in printed[""]
    line = next(line for line in printed[""].splitlines() if line.split()[:1] == ["dsd"])
    assert all(figure in line for figure in figures)
    parsed = json.loads(printed["--json"])
    assert parsed["notes"] == [] and [row["method"] for row in parsed["comparisons"][0]["rows"]] == [
        "no teacher",
        "dsd",
    ]
    both = CliRunner().invoke(app, ["table", str(tmp_path), "--json", "--markdown"])
    assert both.exit_code == 2
