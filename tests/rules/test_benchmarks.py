"""What the benchmarks run are jobs, and what they have written is what their code writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import camvid_losses, camvid_views
from benchmarks import losses as loss_costs
from benchmarks import queue as queue_costs
from benchmarks import service as service_costs
from dsd_core.distill.presets import DEFAULT_PRESET, preset_losses
from dsd_core.spec import parse_spec
from tests.conftest import ROOT

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
    [("camvid_losses", camvid_losses), ("losses", loss_costs), ("queue", queue_costs), ("service", service_costs)],
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
