"""Step 0 of a run: everything that can be wrong is found within seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from dsd_core import checkpoint, dist
from dsd_core.allocator import keep_freed_memory
from dsd_core.check import refuse_unfit_images
from dsd_core.cores import usable_cores
from dsd_core.data import open_dataset
from dsd_core.data.loader import cached
from dsd_core.data.scan import scan
from dsd_core.distill.losses import log_class_weights
from dsd_core.environment import environment
from dsd_core.errors import SpecError
from dsd_core.events import (
    Event,
    Note,
)
from dsd_core.models.compiling import refuse_without_compiler
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.pulse import Pulse, read_on
from dsd_core.run import Run, build_leg, warning
from dsd_core.run_teacher import (
    loaded_teacher,
    plan_that_fits,
    recall_signals,
)
from dsd_core.signals.plan import plan_of
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec


def prepare(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    stop: Callable[[], bool],
    enough: Callable[[], bool],
    teacher_weights: Path | None,
    fence: int,
    store: Store,
) -> Run:
    """Step 0: read all data once, load the teacher and build a student, so that what cannot work fails within
    seconds."""
    keep_freed_memory()
    torch.set_num_threads(spec.train.threads or max(1, usable_cores() // dist.world()))
    torch.backends.cudnn.benchmark = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, pulse = spec.dataset, Pulse(out / "pulse") if dist.is_first() else silence
    train_set = cached(open_dataset(data.name, data.root, "train", data.size))
    val_set = cached(open_dataset(data.name, data.root, "val", data.size))
    tell = partial(read_on, pulse, stop)
    scanned = scan(train_set, tell=tell)
    refuse_unfit_images(spec, train_set, scanned)
    scan(val_set, tell=tell)
    weights = None
    if any(loss.needs_class_shares for loss in spec.losses):
        weights = log_class_weights(torch.tensor(scanned.class_shares, dtype=torch.float32))
    writer = checkpoint.Writer(
        out / "checkpoints",
        every_s=spec.train.checkpoint_every_s,
        kept=spec.train.checkpoints_kept,
        fence=fence,
        warn=lambda text: emit(warning(text)),
    )
    run = Run(
        spec, out, emit, stop, enough, pulse, writer, store, device, environment(device), train_set, val_set, weights
    )
    plan = plan_of(spec)
    if spec.teacher is not None:
        wake = partial(loaded_teacher, run, teacher_weights)
        run.teacher = Frozen(wake())
        plan = plan if plan is None else plan_that_fits(run, plan)
    # Names of taps and shapes of weights are proved before anything is trained.
    learner = build_leg(run, next(leg for leg in run.legs if leg.exported))
    learner.task.close()
    if run.teacher is not None:
        run.teacher.settle(chain.from_iterable(learner.task.teacher_layers.values()))
    if plan is not None:
        run.recall = recall_signals(run, plan, learner.task.teacher_layers, wake)
    refuse_without_compiler(spec.train.compile, device)
    refuse_too_many_processes(spec)
    if spec.train.batch // dist.world() // spec.train.accumulate == 1:
        refuse_single_images(learner.student, spec.train.augment.crop or train_set.size)
    if learner.started_from is not None:
        emit(Note(message=f"The student starts from {learner.started_from}"))
    return run


def silence() -> None:
    pass


def refuse_too_many_processes(spec: JobSpec) -> None:
    if spec.train.batch < dist.world() * spec.train.accumulate:
        parts = f", each in {spec.train.accumulate} parts," if spec.train.accumulate > 1 else ""
        raise SpecError(
            f"{dist.world()} processes{parts} cannot share batches of {spec.train.batch}.",
            field="/train/batch",
            hint="Give each part at least one image, better two: batch normalisation sees only that part.",
        )


def refuse_single_images(student: Segmenter, size: tuple[int, int]) -> None:
    """Raise SpecError where the student cannot train on one image at a time: batch normalisation of pooled features
    needs more than one value a channel. Alters the student's running statistics."""
    device = next(student.parameters()).device
    try:
        student.train()(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    except ValueError as error:
        raise SpecError(
            f"This network cannot train on one image at a time: {error}.",
            field="/train/batch",
            hint="Set train.batch to 2 or more; it normalises features that are pooled to one value an image.",
        ) from error
