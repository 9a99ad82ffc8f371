"""Job files and `--set` as the command line reads them: YAML or JSON, with paths made absolute."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsd_core.errors import SpecError
from dsd_core.yaml_text import parse_documents, parse_yaml

Json = dict[str, Any]
PATHS = (
    ("dataset", "root"),
    ("teacher", "weights"),
    ("teacher", "onnx"),
    ("student", "weights"),
    ("student", "encoder_file"),
)


def read(path: Path, overrides: Iterable[str] = ()) -> Json:
    """The job of a file that holds one, as `read_all`."""
    jobs = read_all(path, overrides)
    if len(jobs) > 1:
        raise SpecError(
            f"{path} holds {len(jobs)} jobs.", hint="`dsd submit` queues them all; here, give one in a file."
        )
    return jobs[0]


def read_all(path: Path, overrides: Iterable[str] = ()) -> list[Json]:
    """The jobs of a file, separated by lines of `---`, with the overrides applied; relative paths are taken from the
    current directory.

    Field values are checked by whoever runs the jobs. Raises SpecError.
    """
    try:
        jobs = parse_documents(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"There is no job file {path}.", hint="Ready ones are in examples/.") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not jobs or not all(isinstance(job, dict) for job in jobs):
        raise SpecError(f"{path} must hold a mapping of fields, such as `name: my-student`.")
    for override in overrides:
        meant, change = _meant(jobs, override)
        for job in meant:
            apply(job, change)
    return [absolute(job, Path.cwd()) for job in jobs]


def _meant(jobs: list[Json], override: str) -> tuple[list[Json], str]:
    """The jobs that an override is for, and the change: `NAME:KEY=VALUE` is for one of them, else it is for all."""
    key, equals, value = override.partition("=")
    name, colon, inner = key.partition(":")
    if not colon:
        return jobs, override
    found = [job for job in jobs if job.get("name") == name]
    if not found:
        known = ", ".join(str(job.get("name")) for job in jobs)
        raise SpecError(f"--set {override!r}: the file has no job named {name!r}.", hint=f"It has {known}.")
    return found, f"{inner}{equals}{value}"


def apply(job: Json, override: str) -> None:
    """Set one value in place: `train.epochs=3`, `losses.0.weight=2`. The value is read as YAML. Raises SpecError."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise SpecError(f"--set {override!r} is not KEY=VALUE.", hint="For example --set train.epochs=3.")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise SpecError(f"The value of --set {override!r} cannot be read: {error}") from error
    place: Any = job
    for depth, name in enumerate(names[:-1], start=1):
        place = _enter(place, name, ".".join(names[:depth]))
    if isinstance(place, list):
        place[_index(place, names[-1], key)] = value
    else:
        place[names[-1]] = value


def patch(job: Json, overrides: Iterable[str]) -> Json:
    """The RFC 7396 merge patch that makes the overrides to a job; null asks for a field's default. Raises SpecError."""
    changed = copy.deepcopy(job)
    for override in overrides:
        apply(changed, override)
    return _difference(job, absolute(changed, Path.cwd()))


def _difference(old: Json, new: Json) -> Json:
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    return {
        key: _difference(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in changed.items()
    }


def absolute(job: Json, base: Path) -> Json:
    """The job with its paths on this machine made absolute: the fields of PATHS."""
    job = dict(job)
    for part, name in PATHS:
        fields = job.get(part)
        if isinstance(fields, dict) and isinstance(fields.get(name), str):
            job[part] = fields | {name: str((base / Path(fields[name]).expanduser()).resolve())}
    return job


def _enter(place: Any, name: str, key: str) -> Any:
    if isinstance(place, list):
        inner = place[_index(place, name, key)]
    else:
        inner = place.setdefault(name, {})
    if inner is None:
        inner = place[name] = {}
    if not isinstance(inner, dict | list):
        raise SpecError(f"--set: {key} holds the value {inner!r}, so there is nothing below it to set.")
    return inner


def _index(place: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise SpecError(f"--set: {key} is a list of {len(place)}; {name!r} is not a place in it (they count from 0).")
    return int(name)
