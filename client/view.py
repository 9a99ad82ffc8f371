"""How a job looks in a terminal: bars and numbers that move, or plain lines where the output is a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from client.text import duration, fraction, number

Json = dict[str, Any]
PHASES = {"baseline": "without teacher", "student": "student"}
SUBJECTS = {"teacher": "teacher", "baseline": "without teacher", "student": "student"}
STATUS_COLOURS = {
    "queued": "cyan",
    "running": "blue",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
}
CLOCK_CHARS = 8
WISHES = {"pause": "to pause", "resume": "to go on", "stop": "to stop and keep the best student so far"}
TITLE_CHARS = 15  # a further seed's title is longer, and moves what follows


WAITING = {"queued": "waiting for a worker", "running": "the training process starts", "cancelling": "stopping"}


class JobView:
    """Shows the events of one job as they come. Afterwards `result` or `error` hold what the last ones said.

    `status` is the newest that an event has told of.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.result: Json | None = None
        self.error: Json | None = None
        self.status: str | None = None
        self._waits = ""
        self._bars = _Bars(console) if console.is_terminal else None

    def __enter__(self) -> Self:
        self.console.print(Text(self.title, style="bold"))
        if self._bars:
            self._bars.live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bars:
            self._bars.live.stop()

    def follow(self, events: Iterable[Json]) -> None:
        for event in events:
            self.show(event)

    def show(self, event: Json) -> None:
        """Show one event: of a run folder (`type` beside its fields) or of the API (fields under `data`)."""
        kind, data = event["type"], event.get("data") or event
        at = event.get("at") or data.get("at")
        if kind == "finished":
            self.result = data["result"]
        elif kind == "failed":
            self.error = data
        elif kind == "status":
            self.status, self._waits = data["to"], ""
        if self._bars:
            self._bars.move(kind, data, _seconds(at))
        line = _sentence(kind, data)
        if line is None and kind == "progress" and not self._bars:
            line = _progress_line(data)
        if line is not None:
            clock = Text(_clock(at), style="dim")
            self.console.print(Text.assemble(clock, "  ", line), soft_wrap=True)

    def waits(self, words: str) -> None:
        """Show what a queued job waits for; the same words twice are said once."""
        if words == self._waits:
            return
        self._waits = words
        if self._bars:
            self._bars.wait(words)
        else:
            self.console.print(Text.assemble(" " * CLOCK_CHARS, "  ", ("waits    ", "cyan"), words), soft_wrap=True)


class _Bars:
    """A bar for each phase (of each seed) that has begun, and the newest losses under them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn(f"{{task.description:<{TITLE_CHARS}}}"),
            BarColumn(bar_width=24, finished_style="green"),
            _Steps(),
            _Speed(),
            console=console,
        )
        self._losses = Text("")
        self._tasks: dict[str, TaskID] = {}
        self.live = Live(Group(self._progress, self._losses), console=console, refresh_per_second=8)

    def move(self, kind: str, data: Json, now_s: float) -> None:
        """Take one event that happened at `now_s`: a history that is played back shows the durations of then."""
        if kind == "started":
            self._begin("prepare", now_s)
        elif kind == "progress":
            self._advance(data, now_s)
        elif kind in ("finished", "failed"):
            self._end(now_s, done=kind == "finished")
        elif kind == "status":
            if data["to"] not in WAITING:
                self._end(now_s, done=data["to"] == "succeeded")
            self._below(WAITING.get(data["to"], ""))

    def wait(self, words: str) -> None:
        self._below(f"waiting: {words}")

    def _advance(self, data: Json, now_s: float) -> None:
        title, step, steps = _with_seed(PHASES, data["phase"], data), data["step"], data["steps"]
        self._begin(title, now_s)
        speed, left = f"{data['images_per_s']:.0f} img/s", f"{duration(data['eta_s'])} left"
        speed = f"{speed}  {left}" if step < steps else "scoring"
        self._progress.update(self._tasks[title], completed=step, total=steps, speed=speed)
        self._below(f"{_losses(data)}  lr {data['learning_rate']:.1e}")
        if data["total_step"] >= data["total_steps"]:
            self._begin("export", now_s)

    def _begin(self, title: str, now_s: float) -> None:
        """Open the bar of this title, once; those before it are then done."""
        if title in self._tasks:
            return
        for task in self._tasks.values():
            self._fill(task, now_s)
        self._below("")
        fields: Json = {"speed": "", "began_s": now_s, "took_s": None}
        self._tasks[title] = self._progress.add_task(title, total=None, **fields)

    def _end(self, now_s: float, *, done: bool) -> None:
        for task in self._tasks.values():
            if done:
                self._fill(task, now_s)
            else:
                self._progress.stop_task(task)
        self._below("")

    def _below(self, text: str) -> None:
        """The line under the bars."""
        self._losses.plain = f"{'':<{TITLE_CHARS + 1}}{text}" if text else ""
        self._losses.stylize("dim")
        self.live.refresh()

    def _fill(self, task_id: TaskID, now_s: float) -> None:
        task = self._progress.tasks[self._progress.task_ids.index(task_id)]
        if task.fields["took_s"] is None:
            total = task.total or 1
            self._progress.update(task_id, total=total, completed=total, took_s=now_s - task.fields["began_s"])
            self._progress.stop_task(task_id)


class _Steps(ProgressColumn):
    """`120/300`; nothing for a phase without steps."""

    def render(self, task: Task) -> Text:
        steps = "" if task.total is None or task.total <= 1 else f"{task.completed:.0f}/{task.total:.0f}"
        return Text(steps, justify="right")


class _Speed(ProgressColumn):
    """Images per second and time left while a phase runs, its duration afterwards."""

    def render(self, task: Task) -> Text:
        if task.fields["took_s"] is not None:
            return Text(f"in {duration(task.fields['took_s'])}", style="dim")
        return Text(task.fields["speed"])


def _sentence(kind: str, data: Json) -> Text | None:
    """What one event says in a line; None for those that are not news to people."""
    if kind == "evaluated":
        return _evaluated(data)
    if kind == "status":
        return _status(data)
    if kind == "request":
        return Text.assemble(("asked    ", "yellow"), _wish(data))
    if kind == "note":
        warning = data["level"] == "warning"
        return Text.assemble(("warning  " if warning else "", "yellow"), data["message"])
    if kind == "started":
        return _started(data)
    if kind == "failed":
        return Text.assemble(("failed   ", "red"), data["message"])
    return None


def _evaluated(data: Json) -> Text:
    subject = _with_seed(SUBJECTS, data["subject"], data)
    step = f"  at step {data['step']}" if data["step"] else ""
    accuracy = f"  pixel accuracy {fraction(data['pixel_accuracy'])}"
    score = (f"mIoU {fraction(data['miou'])}", "bold green")
    return Text.assemble(
        (f"{subject:<{TITLE_CHARS}} ", "bold"), score, accuracy, (f"{step}  {data['images']} images", "dim")
    )


def _status(data: Json) -> Text:
    to = data["to"]
    parts: list[Any] = [(f"{to:<9}", STATUS_COLOURS.get(to, ""))]
    attempt = data.get("attempt") or 1
    if to == "running":
        parts.append(f"on {data.get('worker') or 'a worker'}")
    elif data.get("reason") and data["reason"] not in ("finished", "cancelled_by_user"):
        parts.append(data["reason"].replace("_", " "))
    if attempt > 1:
        parts.append((f"  attempt {attempt}", "dim"))
    return Text.assemble(*parts)


def _wish(data: Json) -> str:
    if data["request"] == "labels":
        return "for the labels " + (", ".join(f"{key}={value}" for key, value in data["labels"].items()) or "none")
    if data["request"] == "priority":
        return f"for priority {data['priority']}"
    return WISHES.get(data["request"], f"to {data['request']}")


def _started(data: Json) -> Text:
    resumed, steps = data.get("resumed_from"), data["total_steps"]
    return Text.assemble(
        ("continues" if resumed else "starts", "bold"),
        f" on {data['device']}, {data['threads']} threads, torch {data['torch']}",
        f", {steps} steps" if steps else "",
        f", {resumed} of them done" if resumed else "",
    )


def _progress_line(data: Json) -> Text:
    phase = _with_seed(PHASES, data["phase"], data)
    return Text(
        f"{phase:<{TITLE_CHARS}} step {data['step']}/{data['steps']}  {_losses(data)}  lr {data['learning_rate']:.1e}  "
        f"{data['images_per_s']:.0f} img/s  {duration(data['eta_s'])} left"
    )


def _with_seed(titles: dict[str, str], key: str, data: Json) -> str:
    """The title of a network or phase; with the seed where it is not the job's first."""
    title = titles.get(key, key)
    return title if data.get("seed") is None else f"{title}, seed {data['seed']}"


def _losses(data: Json) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in data["losses"].items())


def _seconds(at: str | None) -> float:
    return datetime.fromisoformat(at).timestamp() if at else time.time()


def _clock(at: str | None) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S") if at else " " * CLOCK_CHARS
