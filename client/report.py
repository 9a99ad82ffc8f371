"""The tables: what a job came to, lists of jobs and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from client.text import ago, amount, fraction, signed, size
from client.view import STATUS_COLOURS

Json = dict[str, Any]


def result_table(result: Json, folder: Path | None = None) -> Group:
    """Teacher, student without teacher and student side by side, the gain, the files, and where they were saved."""
    parts: list[Any] = [_networks(result), _gain(result), _smaller(result), _files(result)]
    if folder:
        parts.append(Text.assemble("Student   ", (str(folder), "bold cyan")))
    return Group(*[part for part in parts if part is not None])


def _networks(result: Json) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = [column for column in _columns(result) if column[1] is not None]
    for title, _, _ in columns:
        table.add_column(title, justify="right", style="bold green" if title.startswith("student\ndist") else "")
    costs = [cost or {} for _, _, cost in columns]
    table.add_row("network", *[cost.get("network", "-") for cost in costs])
    table.add_row("mIoU", *[fraction(score["miou"]) for _, score, _ in columns if score])
    table.add_row("pixel accuracy", *[fraction(score["pixel_accuracy"]) for _, score, _ in columns if score])
    table.add_row("parameters", *[amount(cost["params"]) if cost else "-" for cost in costs])
    at = f" at {costs[-1]['height']}x{costs[-1]['width']}"
    table.add_row(f"FLOPs{at}", *[amount(cost["flops"]) if cost else "-" for cost in costs])
    table.add_row(f"latency{at}", *[f"{cost['latency_ms']:.1f} ms" if cost else "-" for cost in costs])
    return table


def _columns(result: Json) -> list[tuple[str, Json | None, Json | None]]:
    """(title, score, cost) of each network; the baseline is the student's network, so it costs the same."""
    distilled = result.get("teacher") is not None
    return [
        ("teacher\n", result.get("teacher"), result.get("teacher_cost")),
        ("student\nwithout teacher", result.get("baseline"), result["student_cost"]),
        ("student\ndistilled" if distilled else "student\n", result["student"], result["student_cost"]),
    ]


def _gain(result: Json) -> Text | None:
    gain = result.get("gain")
    if gain is None:
        return None
    verdict = "the teacher helped" if gain > 0 else "the teacher did not help in this run"
    return Text.assemble(
        "Gain      ", (f"{signed(gain)} mIoU", "bold green" if gain > 0 else "bold red"), f"  {verdict}"
    )


def _smaller(result: Json) -> Text | None:
    teacher, student = result.get("teacher_cost"), result["student_cost"]
    if not teacher:
        return None
    ratios = [_ratio(teacher[key], student[key], less, more) for key, less, more in _COMPARED]
    return Text("Compared  " + ", ".join(ratios) + " than the teacher")


_COMPARED = (
    ("params", "fewer parameters", "more parameters"),
    ("flops", "fewer FLOPs", "more FLOPs"),
    ("latency_ms", "faster", "slower"),
)


def _ratio(teacher: float, student: float, less: str, more: str) -> str:
    return (
        f"{teacher / student:.1f}x {less}" if teacher >= student > 0 else f"{student / max(teacher, 1e-9):.1f}x {more}"
    )


def _files(result: Json) -> Text:
    return Text("Files     " + ", ".join(f"{file['path']} {size(file['bytes'])}" for file in result["files"]))


def jobs_table(jobs: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("job", "name", "kind", "status", "progress", "mIoU", "submitted"):
        table.add_column(title, justify="right" if title in ("progress", "mIoU") else "left", no_wrap=title == "job")
    for job in jobs:
        status = Text(job["status"], style=STATUS_COLOURS.get(job["status"], ""))
        if job["status"] == "failed" and job.get("reason"):
            status.append(f" {job['reason']}", style="dim")
        miou = ((job.get("result") or {}).get("student") or {}).get("miou")
        table.add_row(
            *(job["id"], job["name"], job["kind"], status, _percent(job), fraction(miou)),
            f"{ago(job['created_at'])} ago",
        )
    return table


def _percent(job: Json) -> str:
    progress = job.get("progress")
    if job["status"] == "succeeded":
        return "100 %"
    return f"{100 * progress['total_step'] / max(progress['total_steps'], 1):.0f} %" if progress else "-"


def job_details(job: Json) -> Group:
    """Everything worth knowing about one job."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    status = Text(job["status"], style=STATUS_COLOURS.get(job["status"], ""))
    if job.get("reason"):
        status.append(f"  {job['reason']}", style="dim")
    rows = {
        "job": job["id"],
        "name": job["name"],
        "kind": job["kind"],
        "status": status,
        "attempt": f"{job['attempt']} of {job['max_attempts']}",
        "worker": job.get("worker"),
        "queue position": job.get("queue_position"),
        "progress": _percent(job),
        "submitted": f"{ago(job['created_at'])} ago",
        "MLflow run": job.get("mlflow_run_id"),
        "model": f"{job['name']}/{job['model_version']}" if job.get("model_version") else None,
    }
    for title, value in rows.items():
        if value is not None:
            facts.add_row(title, value if isinstance(value, Text) else str(value))
    parts: list[Any] = [facts]
    if error := job.get("error"):
        parts.append(error_text(error))
    if result := job.get("result"):
        parts.append(result_table(result))
    return Group(*parts)


def error_text(error: Json) -> Text:
    """Why a job failed: message, the field it is about, what to do."""
    text = Text.assemble(("Error  ", "bold red"), str(error.get("message")))
    if error.get("field"):
        text.append(f"\nField  {error['field']}")
    if error.get("hint"):
        text.append(f"\n{error['hint']}", style="dim")
    return text


def findings(answer: Json) -> Group:
    """What `validate` found: warnings about the job, and what it will cost."""
    lines = [Text("The job can be run.", style="green")]
    for finding in answer.get("findings") or []:
        colour = "yellow" if finding["level"] == "warning" else "dim"
        lines.append(
            Text.assemble((f"{finding['level']:<9}", colour), f"{finding.get('field') or ''}  {finding['message']}")
        )
    for name, value in (answer.get("estimates") or {}).items():
        lines.append(Text.assemble((f"{name.replace('_', ' ')}  ", "dim"), str(value)))
    return Group(*lines)


def catalog_table(catalog: Json) -> Table:
    """The names a job file may use, a row for each kind."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind")
    table.add_column("names")
    for kind, entries in catalog.items():
        names = [entry["name"] if isinstance(entry, dict) else str(entry) for entry in entries or [] if _named(entry)]
        if names:
            table.add_row(kind, ", ".join(names))
    return table


def _named(entry: Any) -> bool:
    return isinstance(entry, str) or (isinstance(entry, dict) and "name" in entry)


def models_table(models: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("model", "version", "aliases", "mIoU", "files", "registered", "job"):
        table.add_column(title, justify="right" if title in ("version", "mIoU") else "left")
    for model in models:
        aliases = model.get("aliases") or {}
        for version in model["versions"]:
            table.add_row(
                *(model["name"], str(version["version"])),
                ", ".join(alias for alias, number in aliases.items() if str(number) == str(version["version"])),
                *(fraction(version.get("miou")), ", ".join(file["path"] for file in version["files"])),
                *(f"{ago(version['created_at'])} ago", version["job_id"]),
            )
    return table
