"""A learner as a training has it, to take steps with batches of one's own."""

from __future__ import annotations

from pathlib import Path

from dsd_core.events import Event
from dsd_core.learner import Learner
from dsd_core.prepare import prepare
from dsd_core.run import Run, build_leg, never
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec


def learner_of(spec: JobSpec, out: Path) -> tuple[Run, Learner]:
    """What `train` stands on after its step 0, in the folder `out`, and the student at its start. The process gets the
    settings of one that trains."""

    def hear(event: Event) -> None:
        pass

    out.mkdir(parents=True, exist_ok=True)
    run = prepare(spec, out, hear, never, never, None, 0, Store(out / "signals"))
    learner = build_leg(run, run.legs[-1])
    learner.task.train()
    return run, learner
