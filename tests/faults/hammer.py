"""`python -m tests.faults.hammer URL SECONDS NAME`: submits jobs and works them off as fast as it goes.

Prints how many it finished; an error of the database ends it.
"""

from __future__ import annotations

import sys
import time

from dsd_core.spec import parse_spec
from jobs import db, store
from jobs.resources import Offer
from jobs.status import Reason
from tests.worker.service import scripted


def main(url: str, seconds: float, name: str) -> int:
    engine, spec = db.make_engine(url), parse_spec(scripted("none"))
    offer, deadline, finished = Offer(name, "here", "cpu"), time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with db.begin(engine) as s:
            store.submit(s, spec, max_attempts=1)
        with db.begin(engine) as s:
            claim = store.claim_next(s, offer, lease_s=600)
        if claim is None:
            continue
        with db.begin(engine) as s:
            assert store.beat(s, claim, lease_s=600)
        with db.begin(engine) as s:
            assert store.finish(s, claim, Reason.FINISHED, result={}, run_seconds=0.0)
        finished += 1
    engine.dispose()
    return finished


if __name__ == "__main__":
    print(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))
