"""What the benchmarks run are jobs, and what they have written is what their code writes."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import camvid_losses, camvid_views
from benchmarks import losses as loss_costs
from benchmarks import queue as queue_costs
from benchmarks import service as service_costs
from benchmarks.bench import peer, report, setting, sweep
from benchmarks.bench.measure import figure
from dsd_core.distill.presets import DEFAULT_PRESET, preset_losses
from dsd_core.spec import parse_spec
from tests.conftest import ROOT

FIXED = {
    "warm_store_over_plain",
    "first_pass_over_teacher_in_loop",
    "teacher_in_loop_over_plain",
    "torchdistill_over_ours",
    "dsd_share_of_step",
    "sweep8_over_plain",
    "matmul_peak_share",
    "claim_to_first_step_s",
}
METHODS = ("none", "kd", "at", "skd", "ifvd", "cwd", "cirkd", "dist", "dsd", "dsd_kd", "dsd_cwd")


def test_every_method_is_compared_with_as_many_candidates_and_each_is_a_job() -> None:
    assert tuple(camvid_losses.CANDIDATES) == METHODS
    for method, candidates in camvid_losses.CANDIDATES.items():
        assert len(candidates) == (1 if method == "none" else 3)
        for number in range(len(candidates)):
            piece = camvid_losses.Piece(method, number, 0, 1)
            spec = parse_spec(piece.spec(Path("data"), Path("teacher.safetensors")))
            assert spec.kind == ("train" if method == "none" else "distill")


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_the_presets_are_what_the_comparison_chose(method: str) -> None:
    piece = camvid_losses.Piece(method, camvid_losses.chosen(method), 0, 1)
    compared = parse_spec(piece.spec(Path("data"), Path("teacher.safetensors"))).losses
    assert preset_losses(method)[1:] == compared[1:]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("camvid_losses", camvid_losses),
        ("camvid_views", camvid_views),
        ("losses", loss_costs),
        ("queue", queue_costs),
        ("service", service_costs),
    ],
)
def test_the_committed_table_is_that_of_the_committed_figures(name: str, module: object) -> None:
    figures = ROOT / "benchmarks" / "results" / f"{name}.json"
    report = json.loads(figures.read_text())
    assert module.markdown(report) == figures.with_suffix(".md").read_text()  # type: ignore[attr-defined]


def test_listing_and_claiming_cost_no_more_than_twice_as_much_with_a_million_jobs() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "queue.json").read_text())
    assert (report["sizes"]["large"]["finished"], report["sizes"]["large"]["queued"]) == (1_000_000, 10_000)
    held = {row["cost"]: row["ratio"] for row in report["costs"] if row["cost"].startswith(queue_costs.PROMISED)}
    assert {"GET /jobs", "claim"} < held.keys() and max(held.values()) <= 2.0


def test_five_hundred_watchers_of_a_job_lose_no_event_and_cost_little_while_nothing_happens() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "service.json").read_text())
    many = [row for row in report["events"] if row["watchers"] == 500]
    assert {row["database"] for row in many} == {"SQLite", "PostgreSQL"}
    assert [row["lost"] for row in report["events"]] == [0] * len(report["events"])
    assert all(row["quiet_cpu_share"] <= 0.1 for row in many)


def test_the_default_preset_is_the_one_that_won() -> None:
    report = json.loads((camvid_losses.RESULTS / "camvid_losses.json").read_text())
    assert max(report["table"], key=lambda row: row["miou_mean"])["method"] == DEFAULT_PRESET


def test_the_comparison_has_every_method_with_every_seed_and_the_raw_results_of_all() -> None:
    results = camvid_losses.RESULTS
    report = json.loads((results / "camvid_losses.json").read_text())
    assert {row["method"] for row in report["table"]} == set(METHODS)
    assert all(len(row["miou"]) == len(report["seeds"]) == 3 for row in report["table"])
    assert all(piece.file.exists() for piece in (*camvid_losses.search(), *camvid_losses.comparison()))


@pytest.mark.parametrize("kind", camvid_views.ORDER)
def test_every_kind_of_signals_is_compared_by_a_job_that_differs_in_nothing_else(kind: str) -> None:
    where = Path("data"), Path("teacher.safetensors")
    job = parse_spec(camvid_views.Piece(kind, 0).spec(*where)).model_dump()
    fresh = parse_spec(camvid_views.Piece(camvid_views.FRESH, 0).spec(*where)).model_dump()
    may_differ = {"name", *camvid_views.KINDS[kind]}
    if kind == camvid_views.NONE:
        may_differ |= {"kind", "teacher", "losses"}
    assert {field for field in job if job[field] != fresh[field]} <= may_differ | {"signals"}


def test_views_are_compared_in_fewer_numbers_than_there_are_epochs() -> None:
    assert set(camvid_views.ORDER) == set(camvid_views.KINDS)
    assert {f"view-{views}" for views in camvid_views.VIEWS} <= set(camvid_views.KINDS)
    assert max(camvid_views.VIEWS) < camvid_views.EPOCHS


def test_what_the_bench_trains_are_jobs() -> None:
    data, teacher = Path("data"), Path("teacher.safetensors")
    assert parse_spec(setting.plain(data)).teacher is None
    for signals in ("off", "image"):
        assert parse_spec(setting.distilling(data, teacher, signals)).signals == signals
    for case in peer.cases().values():
        taps = parse_spec(peer.job(data, teacher, case)).student.taps
        assert case.paths["student"] in ([], [f"network.{tap}" for tap in taps])


def test_every_part_of_the_bench_can_be_measured_and_a_report_has_the_figures_that_are_fixed() -> None:
    assert all(callable(import_module(f"benchmarks.bench.{part}").measure) for part in report.PARTS)
    took = {"wall_s": 60.0, "cpu_s": 30.0, "load": [0.0, 0.1]}
    machine = {"processor": "x", "cores": 2, "torch": "2"}
    figures = {name: figure([1.0, 3.0, 2.0]) for name in report.GOALS if name != "claim_to_first_step_s"}
    figures["claim_to_first_step_s"] = {"cold": figure([3.0]), "warm": figure([0.3])}
    part = {"setting": "s", "command": "c", "machine": machine, "took": took, "figures": figures}
    found = report.collect({"any": part})
    assert found.keys() >= FIXED
    assert all(found[name]["command"] == "c" and "2 cores" in found[name]["machine"] for name in FIXED)
    assert found["warm_store_over_plain"]["value"] == 2.0 and found["warm_store_over_plain"]["spread"] == [1.0, 3.0]
    assert "| `warm_store_over_plain` | 2.000 (1.000 to 3.000) | at most 1.05 |" in report.markdown(found)


def test_the_committed_bench_has_the_figures_that_are_fixed_each_with_its_spread_and_how_it_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text())
    assert found.keys() >= FIXED
    assert report.markdown(found) == (ROOT / "benchmarks" / "results" / "bench.md").read_text()
    for name in FIXED:
        figures = [found[name]] if name != "claim_to_first_step_s" else [found[name][kind] for kind in ("cold", "warm")]
        assert found[name]["command"] and found[name]["machine"]
        assert all(one["spread"][0] <= one["value"] <= one["spread"][1] for one in figures)


def test_sweeps_of_other_lengths_cost_what_their_parts_come_to() -> None:
    steps = 10.0 * sweep.EPOCHS  # of 10 s an epoch; 4 s beside them, with a teacher 6 s, and the first two fill for 8 s
    alone = [{"cpu_s": 4 + steps, "steps_cpu_s": steps}] * sweep.STUDENTS
    taught = [{"cpu_s": 14 + steps, "steps_cpu_s": 8 + steps}] * 2
    taught += [{"cpu_s": 6 + steps, "steps_cpu_s": steps}] * (sweep.STUDENTS - 2)
    for runs in (alone, taught):  # the first pairs ran when the machine was slow
        runs[:3] = [{name: 1.5 * seconds for name, seconds in run.items()} for run in runs[:3]]
    for epochs in (1, 10, 100):
        cost = (sweep.STUDENTS * (6 + 10 * epochs) + 16) / (sweep.STUDENTS * (4 + 10 * epochs))
        assert sweep.expected(taught, alone, epochs, 2) == pytest.approx(cost, abs=1e-4)


def test_students_from_image_signals_are_as_good_as_with_the_teacher_in_the_loop_over_all_seeds() -> None:
    found = json.loads((camvid_views.RESULTS / "camvid_views.json").read_text())
    rows = {row["kind"]: row for row in found["table"]}
    assert tuple(rows) == camvid_views.ORDER
    assert all(row["seeds"] == found["seeds"] == [0, 1, 2] for row in rows.values())
    assert rows["image"]["within_one_deviation_of_fresh"] and not rows["none"]["within_one_deviation_of_fresh"]
