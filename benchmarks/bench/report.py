"""The report of all parts: JSON for machines, Markdown and a picture for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import service
from benchmarks.bench.measure import in_words

PARTS = ("step", "espnet", "peer", "sweep", "peak", "loader", "growth", "losses", "service")
GOALS = {
    "warm_store_over_plain": ("step with a warm store / without a teacher", "at most 1.05"),
    "first_pass_over_teacher_in_loop": ("step that fills the store / with the teacher in the loop", "at most 1.02"),
    "teacher_in_loop_over_plain": ("step with the teacher in the loop / without a teacher", ""),
    "espnet_warm_store_over_plain": ("the same with ESPNet as the student", "at most 1.05"),
    "espnet_first_pass_over_teacher_in_loop": ("the same with ESPNet as the student", "at most 1.02"),
    "espnet_teacher_in_loop_over_plain": ("the same with ESPNet as the student", ""),
    "torchdistill_over_ours": ("step of torchdistill / ours, teacher in the loop", "at least 1.5"),
    "dsd_share_of_step": ("share of DSD in a step with a warm store", ""),
    "sweep8_over_plain": ("8 students from one teacher / 8 without", "at most 1.1"),
    "matmul_peak_share": ("share of the matmul peak that a step without a teacher reaches", ""),
    "step_at_10x_data": ("step with a warm store, 10 times the data / once", ""),
    "views_at_10x_data": ("views a second, 10 times the data / once", ""),
    "claim_to_first_step_s": ("seconds from a job's claim to its first step", ""),
}
"""What each figure is, and what it shall be."""
STEPS = {
    "plain": "without a teacher",
    "warm": "warm store",
    "first": "filling the store",
    "loop": "teacher in the loop",
}

Part = dict[str, Any]


def collect(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The report: each figure by its name with its command and machine, and all that the parts found."""
    report: dict[str, Any] = {"command": "make bench"}
    for part in parts.values():
        where = {"setting": part["setting"], "command": part["command"], "machine": in_words(part["machine"])}
        report |= {name: {**found, **where} for name, found in part["figures"].items()}
    return report | {"parts": dict(parts)}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    parts: dict[str, Part] = report["parts"]
    machines = sorted({in_words(part["machine"]) for part in parts.values()})
    lines = [
        "# What distilling costs",
        "",
        f"Made by `{report['command']}` on {'; '.join(machines)}. Every part runs in processes of its own with one"
        " thread each. Ratios are of CPU seconds, of work that shares a core; in brackets the least and the greatest of"
        " the rounds. Memory is the most that a process held.",
        "",
        "![The ratios, and what a step takes](bench.png)",
        "",
        "| figure | value | goal | what |",
        "|---|---|---|---|",
    ]
    for name, (what, goal) in GOALS.items():
        for kind, found in _values(report.get(name)):
            lines.append(f"| `{name}` {kind}| {_cell(found)} | {goal} | {what} |")
    tables = (_steps, _phases, _peer, _sweep, _loading, _growth, _losses, _service, _took)
    for table in tables:
        lines += table(parts)
    return "\n".join(lines) + "\n"


def _values(found: Any) -> list[tuple[str, Any]]:
    if found is None:
        return []
    return [("", found)] if "value" in found else [(f"{kind} ", found[kind]) for kind in ("cold", "warm")]


def _cell(found: Mapping[str, Any], digits: int = 3) -> str:
    low, high = found["spread"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _row(name: str, cells: list[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _table(title: str, part: Part, head: str, rows: list[str]) -> list[str]:
    columns = "|".join("---" for _ in head.split("|"))
    return ["", f"## {title}", "", f"{part['setting']}.", "", f"| {head} |", f"|{columns}|", *rows]


def _steps(parts: Mapping[str, Part]) -> list[str]:
    lines: list[str] = []
    for key, title in (("step", "A step"), ("espnet", "A step of ESPNet")):
        if (part := parts.get(key)) is not None:
            rows = [
                f"| {what} | {_cell(part['steps'][name], 1)} | {part['steps'][name]['peak_mib']} |"
                for name, what in STEPS.items()
            ]
            lines += _table(title, part, "the student learns with | CPU ms | peak MiB", rows)
    return lines


def _phases(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("peak")) is None:
        return []
    profiles = [part["profiles"][name] for name in ("plain", "loop")]
    rows = []
    for phase in profiles[1]["phases"]:
        found = [profile["phases"].get(phase) for profile in profiles]
        rows.append(_row(phase, ["" if times is None else f"{1e3 * times['cpu']:.1f}" for times in found]))
    rows.append(_row("step", [f"{1e3 * profile['step']['cpu']:.1f}" for profile in profiles]))
    rows.append(_row("GFLOP", [f"{profile['flops_per_step'] / 1e9:.1f}" for profile in profiles]))
    shares = part["figures"]["matmul_peak_share"]
    rows.append(_row("share of the matmul peak", [_cell(shares), _cell(shares["teacher_in_loop"])]))
    return _table("Where a step's time goes", part, "CPU ms | without a teacher | teacher in the loop", rows)


def _peer(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("peer")) is None:
        return []
    rows = []
    for name, case in part["cases"].items():
        ours, theirs = case["steps"]["ours"], case["steps"]["theirs"]
        rows.append(
            f"| {name} | {case['first_loss']['ours']:.5f} | {case['first_loss']['theirs']:.5f} | {_cell(ours, 1)}"
            f" | {_cell(theirs, 1)} | {_cell(case['ratio'])} | {ours['peak_mib']} | {theirs['peak_mib']} |"
        )
    head = (
        "losses | first loss, ours | torchdistill's | CPU ms a step, ours | torchdistill's | ratio | peak MiB, ours |"
        " torchdistill's"
    )
    return _table("Beside torchdistill, teacher in the loop", part, head, rows)


def _sweep(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("sweep")) is None:
        return []
    found = part["figures"]["sweep8_over_plain"]
    rows = [
        f"| {epochs} | {ratio:.3f} | {'measured' if ratio == found['value'] else 'computed'} |"
        for epochs, ratio in found["by_epochs"].items()
    ]
    return _table("Eight students from one teacher", part, "epochs | ratio | ", rows)


def _loading(parts: Mapping[str, Part], name: str = "loader", title: str = "The data alone") -> list[str]:
    if (part := parts.get(name)) is None:
        return []
    rows = [
        f"| {row['from']} | {row['loaders']} | {_cell(row['views_per_s'], 0)} | {_cell(row['cpu_ms_per_view'], 2)} |"
        for row in part["loading"]
    ]
    return _table(title, part, "images from | loader processes | views/s | CPU ms a view", rows)


def _growth(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("growth")) is None:
        return []
    rows = [f"| {name} | {_cell(found, 1)} | {found['peak_mib']} |" for name, found in part["steps"].items()]
    table = _table("Ten times the data", part, "images | CPU ms a step, warm store | peak MiB", rows)
    return table + _loading(parts, "growth", "The data alone, ten times as much")


def _losses(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("losses")) is None:
        return []
    rows = [
        f"| {row['loss']} | {1000 * row['cpu_seconds']:.1f} | {row['peak_mib']:.1f}"
        f" | {100 * row['share_of_step']:.3f} % |"
        for row in part["losses"]
    ]
    table = _table("Each loss", part, "loss | CPU ms | peak MiB | of a step", rows)
    return [*table, "", "More of them is in [losses.md](losses.md)."]


def _service(parts: Mapping[str, Part]) -> list[str]:
    if (part := parts.get("service")) is None:
        return []
    return ["", "## The service", "", *service.markdown(part["service"]).rstrip("\n").splitlines()[2:]]


def _took(parts: Mapping[str, Part]) -> list[str]:
    lines = ["", "## What measuring took", ""]
    lines += ["| part | command | minutes | CPU minutes | load before and after |", "|---|---|---|---|---|"]
    for name, part in parts.items():
        took = part["took"]
        lines.append(
            f"| {name} | `{part['command']}` | {took['wall_s'] / 60:.1f} | {took['cpu_s'] / 60:.1f}"
            f" | {took['load'][0]}, {took['load'][1]} |"
        )
    return lines


def draw(report: dict[str, Any], path: Path) -> None:
    """The ratios with their spread beside the milliseconds of a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = [name for name in GOALS if name in report and name.find("_over_") > 0]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(3, 2))
    _bars(left, [(name, report[name]) for name in ratios])
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("ratio of CPU seconds")
    steps = report["parts"].get("step", {"steps": {}})["steps"]
    _bars(right, [(what, steps[name]) for name, what in STEPS.items() if name in steps])
    right.set_xlabel("CPU ms a step")
    figure.savefig(path, dpi=110)


def _bars(axes: Any, rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    values = [found["value"] for _, found in rows]
    # The value of a whole may lie outside the spread of its rounds.
    below = [max(0.0, found["value"] - found["spread"][0]) for _, found in rows]
    above = [max(0.0, found["spread"][1] - found["value"]) for _, found in rows]
    axes.barh([name for name, _ in rows], values, xerr=[below, above], capsize=3, color="tab:blue", alpha=0.7)
    axes.invert_yaxis()
