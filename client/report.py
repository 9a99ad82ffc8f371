"""The tables: what a job came to, lists of jobs and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from client.text import ago, ahead, amount, duration, fraction, signed_with_spread, size, with_spread
from client.view import STATUS_COLOURS
from client.waiting import waits_for

Json = dict[str, Any]


def result_table(result: Json) -> Group:
    """Teacher, student without teacher and student side by side, the gain, and the files."""
    parts: list[Any] = [_networks(result), _gain(result), _smaller(result), _files(result)]
    return Group(*[part for part in parts if part is not None])


@dataclass(frozen=True)
class _Column:
    """One network of the comparison; a score or cost that is not known stays a dash."""

    title: str
    score: Json
    cost: Json
    style: str = ""
    over_seeds: str = "-"


def _networks(result: Json) -> Table:
    columns = _columns(result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column.title, justify="right", style=column.style)
    at = f"at {result['student_cost']['height']}x{result['student_cost']['width']}"
    table.add_row("network", *[column.cost.get("network", "-") for column in columns])
    table.add_row("mIoU", *[fraction(column.score.get("miou")) for column in columns])
    if len(result.get("seeds", [])) > 1:
        table.add_row(f"mIoU of {len(result['seeds'])} seeds", *[column.over_seeds for column in columns])
    for title, figure in _FIGURES:
        if any(column.score.get(figure) is not None for column in columns):
            table.add_row(title, *[fraction(column.score.get(figure)) for column in columns])
    table.add_row("parameters", *[amount(column.cost["params"]) if column.cost else "-" for column in columns])
    table.add_row(f"FLOPs {at}", *[amount(column.cost["flops"]) if column.cost else "-" for column in columns])
    table.add_row(f"latency {at}", *[f"{c.cost['latency_ms']:.1f} ms" if c.cost else "-" for c in columns])
    return table


def _columns(result: Json) -> list[_Column]:
    """The baseline is the student's network, so it costs the same."""
    teacher, teacher_cost, baseline = result.get("teacher"), result.get("teacher_cost"), result.get("baseline")
    student, cost = result["student"], result["student_cost"]
    of_students = with_spread(result.get("miou_mean"), result.get("miou_spread"))
    if not (teacher or teacher_cost or baseline):
        return [_Column("student", student, cost, "bold green", of_students)]
    columns = [
        _Column("teacher\n", teacher or {}, teacher_cost or {}),
        _Column("student\ndistilled", student, cost, "bold green", of_students),
    ]
    if baseline:
        of_baselines = with_spread(result.get("baseline_mean"), result.get("baseline_spread"))
        columns.insert(1, _Column("student\nwithout teacher", baseline, cost, "", of_baselines))
    return columns


SHORT_KEY = 12  # characters of the key of signals; `--key` takes how one begins
_FIGURES = (
    ("pixel accuracy", "pixel_accuracy"),
    ("class accuracy", "class_accuracy"),
    ("boundary IoU", "boundary_iou"),
)


def _gain(result: Json) -> Text | None:
    """The gain of the only seed, or the mean over several with its spread."""
    spread = result.get("gain_spread")
    gain = result.get("gain") if spread is None else result["gain_mean"]
    if gain is None:
        return None
    verdict = "the teacher helped" if gain > 0 else "the teacher did not help in this run"
    if spread is not None:
        verdict = f"mean of {len(result['seeds'])} seeds"
    shown = signed_with_spread(gain, spread)
    return Text.assemble("Gain      ", (f"{shown} mIoU", "bold green" if gain > 0 else "bold red"), f"  {verdict}")


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


def _files(result: Json) -> Text | None:
    weights = [file for file in result["files"] if file["path"].endswith((".safetensors", ".onnx"))]
    if not weights:
        return None
    return Text("Files     " + ", ".join(f"{file['path']} {size(file['bytes'])}" for file in weights))


def jobs_table(jobs: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("job", "name", "kind", "status", "progress", "mIoU", "age"):
        justify: Literal["left", "right"] = "right" if title in ("progress", "mIoU") else "left"
        table.add_column(title, justify=justify, no_wrap=title == "job", overflow="fold")
    for job in jobs:
        miou = ((job.get("result") or {}).get("student") or {}).get("miou")
        table.add_row(
            *(job["id"], job["name"], job["kind"], _status(job), _percent(job), fraction(miou)),
            ago(job["created_at"]),
        )
    return table


def _status(job: Json) -> Text:
    """The status with what makes it interesting: why it failed, what it waits for, what it is asked."""
    status = Text(job["status"], style=STATUS_COLOURS.get(job["status"], ""))
    more = [waits_for(job), f"asked to {job['request']}" if job.get("request") else None]
    if job["status"] == "failed":
        more.append(job.get("reason"))
    return status.append("".join(f" {words}" for words in more if words), style="dim")


def standing(job: Json) -> Text:
    """One line on a job after something was asked of it."""
    return Text.assemble(f"{job['name']} is ", _status(job), ".")


def _percent(job: Json) -> str:
    progress = job.get("progress")
    if job["status"] == "succeeded":
        return "100 %"
    return f"{progress['percent']:.0f} %" if progress else "-"


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
        "waits": waits_for(job),
        "asked to": job.get("request"),
        "needs": ", ".join(f"{need['id']} {need['status']}" for need in job.get("needs", [])) or None,
        "starts": _estimate(job, "start"),
        "ends": _estimate(job, "finish"),
        "priority": job.get("priority") or None,
        "group": job["group"] if job.get("group", "default") != "default" else None,
        "labels": ", ".join(f"{key}={value}" for key, value in job.get("labels", {}).items()) or None,
        "retry of": job.get("retry_of"),
        "cloned from": job.get("cloned_from"),
        "progress": _percent(job),
        "submitted": f"{ago(job['created_at'])} ago",
        "MLflow": job["mlflow"]["url"],
        "model": f"{job['model']['name']}/{job['model']['version']}" if job["model"]["version"] else None,
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


def _estimate(job: Json, end: Literal["start", "finish"]) -> str | None:
    """How far ahead it is; None where it is not known or has passed."""
    at = job.get(f"estimated_{end}_at")
    return f"{ahead(at)}, as estimated" if at and not (end == "start" and job.get("started_at")) else None


def workers_table(workers: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("worker", "device", "memory", "labels", "state", "job", "heard of"):
        table.add_column(title, overflow="fold")
    for worker in workers:
        table.add_row(
            *(worker["name"], " ".join([worker["device"], *worker["devices"]]), f"{worker['memory_gib']:.0f} GiB"),
            ", ".join(f"{key}={value}" for key, value in worker["labels"].items()),
            *(_state(worker), worker["job_id"] or "-", f"{ago(worker['heartbeat_at'])} ago"),
        )
    return table


def _state(worker: Json) -> Text:
    if not worker["live"]:
        return Text("away", style="red")
    if worker["drain"]:
        return Text("drained" if worker["job_id"] is None else "draining", style="yellow")
    return Text("busy" if worker["job_id"] else "idle", style="green")


def error_text(error: Json) -> Text:
    """Why a job failed: message, the field it is about, what to do."""
    text = Text.assemble(("Error  ", "bold red"), str(error.get("message")))
    if error.get("field") and error["field"] not in text.plain:
        text.append(f"\nField  {error['field']}")
    if error.get("hint"):
        text.append(f"\n{error['hint']}", style="dim")
    return text


def findings(answer: Json) -> Group:
    """What `validate` found: warnings about the job, and what it will cost."""
    lines = [Text("The job can be run.", style="green")]
    for finding in answer["findings"]:
        colour = "yellow" if finding["level"] == "warning" else "dim"
        lines.append(
            Text.assemble((f"{finding['level']:<9}", colour), f"{finding.get('field') or ''}  {finding['message']}")
        )
    for name, value in answer["estimates"].items():
        shown = duration(value) if name.endswith("_s") and value is not None else value
        if shown is not None:
            lines.append(Text.assemble((f"{name.removesuffix('_s').replace('_', ' ')}  ", "dim"), str(shown)))
    return Group(*lines)


def catalog_table(catalog: Json) -> Table:
    """The names a job file may use, a row for each kind."""
    encoders = catalog["encoders"]
    some, more = ", ".join(encoders["names"][:12]), encoders["count"] - 12
    rows = {
        "networks": ", ".join(_catalog_names(catalog["networks"])),
        "encoders": some + (f" and {more} more: dsd catalog --search TEXT" if more > 0 else ""),
        "losses": ", ".join(_catalog_names(catalog["losses"])),
        "presets of losses": ", ".join(catalog["presets"]),
        "datasets": ", ".join(_catalog_names(catalog["datasets"])),
        "teachers (zoo)": ", ".join(_catalog_names(catalog["zoo_teachers"])),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for kind, names in rows.items():
        table.add_row(kind, names)
    return table


def _catalog_names(entries: list[Json]) -> list[str]:
    return [entry["name"] for entry in entries]


def models_table(models: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("model", "version", "aliases", "mIoU", "age", "job"):
        table.add_column(title, justify="right" if title in ("version", "mIoU") else "left", overflow="fold")
    for model in models:
        for version in model["versions"]:
            table.add_row(
                *(model["name"], str(version["version"])),
                ", ".join(version["aliases"]),
                *(fraction(version.get("miou")), ago(version["created_at"]), version["job_id"]),
            )
    return table


def storage_table(held: Json) -> Group:
    """Bytes by what they are, then the rules."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(held["place"], overflow="fold")
    table.add_column(f"{held['runs']} run folders", justify="right")
    for title, figure in (("checkpoints", "checkpoint"), ("registered students", "student"), ("the rest", "other")):
        table.add_row(title, size(held[f"{figure}_bytes"]))
    table.add_row("together", size(held["bytes"]), style="bold")
    table.add_row("teachers' signals, beside them (dsd signals)", size(held["signal_bytes"]))
    rules = [f"checkpoints of jobs that ended {held['keep_checkpoint_days']:g} days ago"]
    if held["keep_days"] is not None:
        rules.append(f"logs and pictures of jobs that ended {held['keep_days']:g} days ago")
    if held["keep_bytes"] is not None:
        rules.append(f"the oldest, while there is more than {size(held['keep_bytes'])}")
    return Group(table, Text(f"Every hour go {'; '.join(rules)}. Now: dsd storage prune"))


def signals_table(held: Json) -> Group:
    """Entries with what they are of; a damaged one is marked."""
    full = f"{size(held['bytes'])} of {size(held['limit_bytes'])} in {held['place']}."
    return Group(_signals(held["data"]), Text(full)) if held["data"] else Group(Text(f"Nothing is kept: {full}"))


def verified_signals_table(found: Json) -> Group:
    """What each entry has that is right, and what was damaged."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", "right", "damaged"):
        table.add_column(title, justify="left" if title == "key" else "right", overflow="fold")
    for entry in found["data"]:
        damaged = str(entry["damaged"]) if entry["whole"] else Text("all of it", style="red")
        table.add_row(entry["key"][:SHORT_KEY], str(entry["filled"]), damaged)
    said = "Nothing is damaged." if not found["damaged"] else "What was damaged is forgotten; jobs compute it anew."
    return Group(table, Text(said)) if found["data"] else Group(Text("Nothing is kept."))


def pruned_signals_table(pruned: Json) -> Group:
    """What goes or has gone, how much that is, and what a job uses."""
    verb = "would go" if pruned["dry_run"] else "went"
    lines = [Text(f"{size(pruned['bytes'])} {verb}.")]
    if pruned["in_use"]:
        keys = ", ".join(entry["key"][:SHORT_KEY] for entry in pruned["in_use"])
        lines.append(Text(f"In use by a job, and left alone: {keys}", style="yellow"))
    return Group(_signals(pruned["data"]), *lines) if pruned["data"] else Group(*lines)


def _signals(entries: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", "kind", "teacher", "dataset", "records", "size", "last used"):
        table.add_column(title, justify="right" if title in ("records", "size") else "left", overflow="fold")
    for entry in entries:
        about = [str(entry["about"].get(name, "-")) for name in ("kind", "teacher", "dataset")]
        used = Text("now", style="green") if entry["in_use"] else Text(ago(entry["used_at"]))
        records = f"{entry['filled']}/{entry['records']}" if entry["whole"] else Text("damaged", style="red")
        table.add_row(entry["key"][:SHORT_KEY], *about, records, size(entry["bytes"]), used)
    return table


def removals_table(pruned: Json) -> Group:
    """What goes or has gone, and how much that is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("job", "name", "what", "size", "why"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for removal in pruned["data"]:
        what, bytes_ = removal["part"], size(removal["bytes"])
        table.add_row(removal["job_id"], removal["name"] or "-", what, bytes_, removal["why"])
    verb = "would go" if pruned["dry_run"] else "went"
    total = Text(f"{size(pruned['bytes'])} {verb}.")
    return Group(table, total) if pruned["data"] else Group(total)
