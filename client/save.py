"""A registered model's files, downloaded into a folder with progress bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from client.http import Client
from dsd_core.errors import DsdError

Json = dict[str, Any]
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx"}
COMPANIONS = (".json", ".md")  # what the weights are and how to use them goes with every format


class NoSuchFile(DsdError):
    """The model has no file of that kind."""

    exit_code = 1


def save(client: Client, name: str, version: str, to: Path, console: Console, *, kind: str = "all") -> list[Path]:
    """Download a version (number or alias) into the folder `to`; returns the files, each verified by its sha256.

    `kind` is `safetensors`, `onnx` or `all`. Where `to` is named like a file of that kind, it is that file, alone.
    """
    files = client.files(name, version)["files"]
    alone = kind in SUFFIXES and to.suffix == SUFFIXES[kind]
    chosen = [file for file in files if _wanted(file["path"], kind, alone)]
    if not any(kind == "all" or file["path"].endswith(SUFFIXES[kind]) for file in chosen):
        raise NoSuchFile(f"{name}/{version} has no {kind} file; it has {', '.join(file['path'] for file in files)}.")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        return [_save(client, name, version, file, to if alone else inside(to, file["path"]), bars) for file in chosen]


def inside(folder: Path, name: str) -> Path:
    """The place in the folder for a file that the service names. Raises NoSuchFile for a name that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise NoSuchFile(f"The service names a file {name!r} that lies outside of {folder}.")
    return path


def _wanted(path: str, kind: str, alone: bool) -> bool:
    if kind == "all":
        return True
    return path.endswith(SUFFIXES[kind]) or (not alone and path.endswith(COMPANIONS))


def _save(client: Client, name: str, version: str, file: Json, to: Path, bars: Progress) -> Path:
    task = bars.add_task(file["path"], total=file["bytes"])
    move: Callable[[int, int | None], None] = lambda done, _: bars.update(task, completed=done)  # noqa: E731
    return client.download(name, version, file["path"], to, move)
