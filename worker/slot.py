"""A place where one job at a time runs: what it has for a job, and how it starts one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from jobs.resources import Offer
from jobs.settings import Settings
from jobs.storage import Storage, storage_of
from worker import launch
from worker.board import Board
from worker.fork_server import ForkServer, ServerGone

TRAINING = (sys.executable, "-m", "dsd_core", "run")


@dataclass(frozen=True)
class Slot:
    """`command` gets the spec file, `--out` and the run folder; only the usual one can be forked from a warm server."""

    settings: Settings
    offer: Offer
    board: Board = field(default_factory=Board)
    command: Sequence[str] = TRAINING
    server: ForkServer = field(default_factory=ForkServer)

    @cached_property
    def storage(self) -> Storage:
        """Made on first use, so after any fork. Raises StorageError."""
        return storage_of(self.settings)

    def warm_up(self) -> None:
        """Have a server at hand for the next job, in the background."""
        if self.settings.warm and self.command == TRAINING:
            self.server.boot()

    def start(self, arguments: Sequence[str], *, job_id: str, fence: int, log: Path, processes: int) -> launch.Child:
        """Start the training process of an attempt: forked from the warm server where there is one, else anew.

        Several processes are always started anew, by torchrun, which a server could not save much of.
        """
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(self.offer.devices[:processes])}
        start = partial(launch.start, job_id=job_id, fence=fence, log=log, environment=environment)
        if processes > 1:
            return start([*_torchrun(self.command, processes), *arguments], several=True)
        try:
            return launch.start_warm(
                self.server, ["run", *arguments], job_id=job_id, fence=fence, log=log, environment=environment
            )
        except ServerGone:
            return start([*self.command, *arguments])


def _torchrun(command: Sequence[str], processes: int) -> list[str]:
    program, *training = command
    return [program, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *training]
