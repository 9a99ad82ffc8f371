"""A side of a comparison that is a real training: a unit of its work is a step, with loading, logging and all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench.turns import Pace, Side
from dsd_core.errors import Interrupted
from dsd_core.events import Event
from dsd_core.signals.store import Store
from dsd_core.spec import parse_spec
from dsd_core.train import train


def training(spec: dict[str, Any], out: Path, store: Path | None = None) -> Side:
    """The training of a job file in the folder `out`; before its first step it has read the data and scored the
    teacher."""
    return Side("training", {"spec": spec, "out": str(out), "store": store and str(store)})


def run(options: dict[str, Any]) -> None:
    """Train, and wait before the first step and after those that were asked for."""
    pace, ready = Pace(), False

    def paused() -> bool:
        """What the training asks once before its first step, and once after each."""
        nonlocal ready
        goes_on = pace.done() if ready else pace.start()
        ready = True
        if not goes_on:
            raise Interrupted("Measured enough.")
        return False

    def hear(event: Event) -> None:
        pass

    out = Path(options["out"])
    out.mkdir(parents=True)
    store = None if options["store"] is None else Store(Path(options["store"]))
    try:
        train(parse_spec(options["spec"]), out, hear, store=store, enough=paused)
    except Interrupted:
        pass


if __name__ == "__main__":
    run(json.loads(sys.argv[sys.argv.index("--side") + 1]))
