"""One attempt at a run, as a process of its own: what it hears, what it tells, and how it ends.

    SIGTERM, SIGINT   write a checkpoint and end with 75; the same command goes on from there
    SIGUSR2           train no more: keep the best student so far, export it, end as finished
    SIGUSR1           print the stacks of all threads to stderr, and go on

    OUT/events.jsonl  what happened; `finished` or `failed` is the last line, unless it was interrupted or killed
    OUT/exit_code     what the process ends with, for a parent that sees only what torchrun makes of it: 1
    OUT/pulse         a counter that moves while the work does

Of several processes the first alone tells; the others leave `OUT/failure-RANK.json`, which it passes on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dsd_core.disk import UNWRITABLE, storage_error, storage_errors
from dsd_core.errors import DsdError, Interrupted, OutOfMemoryError, PeerLostError
from dsd_core.events import Event, EventFile, Failed, Finished
from dsd_core.fault_points import fault_point
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec, load_spec


class Heard:
    """The signals that came since the start, by number."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: self._numbers.add(number))
        faulthandler.register(signal.SIGUSR1, all_threads=True)

    def stop(self) -> bool:
        return not self._numbers.isdisjoint({signal.SIGTERM, signal.SIGINT})

    def enough(self) -> bool:
        return signal.SIGUSR2 in self._numbers


def run_attempt(
    job: Path,
    out: Path,
    *,
    teacher_weights: Path | None = None,
    student_weights: Path | None = None,
    fence: int = 0,
    store: Store | None = None,
) -> None:
    """Do the job of a file in the run folder `out`; training goes on from where its checkpoints end. `store` keeps the
    teacher's signals, by default in the run folder.

    Raises DsdError, after the event that tells of it.
    """
    heard = Heard()
    spec = load_spec(job)
    rank = int(os.environ.get("RANK", "0"))
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _failure_file(out, rank).unlink(missing_ok=True)
        tell = _first_of_all(spec, out) if rank == 0 else _tell_nobody
    try:
        from dsd_core import dist  # here, for torch takes seconds to load, and a wrong job file should not wait
        from dsd_core.train import fit
        from dsd_core.trained import evaluate_student, export_again

        result = None
        if spec.trains:
            dist.join()
            result = fit(
                spec,
                out,
                tell,
                teacher_weights=teacher_weights,
                stop=heard.stop,
                enough=heard.enough,
                fence=fence,
                store=store,
            )
        elif rank == 0:  # of several processes one is enough
            do = evaluate_student if spec.kind == "evaluate" else export_again
            result = do(spec, out, tell, weights=student_weights, stop=heard.stop)
        if result is not None:
            fault_point("finished.before")
            tell(Finished(result=result))
        dist.leave()
        _note_exit(out, rank, 0)
    except Exception as error:
        told = _told_by_another(out, error) or as_dsd_error(error)
        _note_exit(out, rank, told.exit_code)
        if rank > 0:
            _failure_file(out, rank).write_text(json.dumps(told.as_dict()))
        if not isinstance(told, Interrupted):
            with suppress(OSError):  # of a full disk the exit code tells
                tell(Failed(code=told.code, message=told.message, hint=told.hint, field=told.field))
        if not isinstance(error, DsdError):
            traceback.print_exc()
        if told is error:
            raise
        raise told from error


def as_dsd_error(error: Exception) -> DsdError:
    """What a user can be told of any error."""
    import torch

    if isinstance(error, DsdError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError(
            f"Memory ran out: {str(error).splitlines()[0] if str(error) else 'no more to be had'}",
            field="/train/batch",
            hint="Lower train.batch or train.augment.crop, or run it on a larger device.",
        )
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return storage_error(error, Path(error.filename or "the run folder"))
    return DsdError(f"{type(error).__name__}: {error}")


def _first_of_all(spec: JobSpec, out: Path) -> Callable[[Event], None]:
    """Open the run folder for this attempt; returns what its events are told to."""
    (out / "exit_code").unlink(missing_ok=True)
    (out / "spec.json").write_text(spec.model_dump_json(indent=1))
    return EventFile(out / "events.jsonl")


def _tell_nobody(event: Event) -> None:
    pass


def _note_exit(out: Path, rank: int, code: int) -> None:
    if rank == 0:
        with suppress(OSError):
            (out / "exit_code").write_text(f"{code}\n")


def _failure_file(out: Path, rank: int) -> Path:
    return out / f"failure-{rank}.json"


def _told_by_another(out: Path, error: Exception) -> DsdError | None:
    """What ended another process of this run, where that is what ended this one and it left word."""
    if not isinstance(error, PeerLostError):
        return None
    known = {cls.code: cls for cls in DsdError.__subclasses__()}
    for path in sorted(out.glob("failure-*.json")):
        word = json.loads(path.read_text())
        return known.get(word.pop("code"), DsdError)(**word)
    return None
