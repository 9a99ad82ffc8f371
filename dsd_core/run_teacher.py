"""The teacher of a run: loaded, held against its floor, kept for what the end says of it, its signals opened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsd_core import dist
from dsd_core.distill.teaching import Names
from dsd_core.errors import SpecError, WeakTeacherError
from dsd_core.events import (
    Cost,
    Evaluated,
    Note,
    Score,
)
from dsd_core.export import measure_cost
from dsd_core.learner import memory_format
from dsd_core.models.segmenter import Segmenter
from dsd_core.run import Run, mask_of, pictured, score_network, warning
from dsd_core.signals.facts import fact_key, keep_fact, known_fact
from dsd_core.signals.opening import Shift, numerics, open_recall, teacher_identity
from dsd_core.signals.plan import Plan
from dsd_core.signals.recall import Recall, scaled_size
from dsd_core.spec import JobSpec
from dsd_core.teacher import load_teacher


def loaded_teacher(run: Run, weights: Path | None) -> Segmenter:
    """The teacher on the device; sets what the run says of it."""
    assert run.spec.teacher is not None
    sizes = (run.spec.train.augment.crop or run.train_set.size, run.val_set.size)
    segmenter, run.teacher_network, run.teacher_digest = load_teacher(
        run.spec.teacher, run.classes, weights, sizes=sizes
    )
    return segmenter.to(run.device).to(memory_format=memory_format(run.spec))


def plan_that_fits(run: Run, plan: Plan) -> Plan | None:
    """None where the teacher takes no whole images and the spec leaves the choice; else SpecError."""
    assert run.teacher is not None
    refuse = getattr(run.teacher.network, "refuse_other_size", None)
    if refuse is None or plan.kind == "view":
        return plan
    sizes = {run.train_set.size_of(index) for index in range(len(run.train_set))}
    try:
        for size, scale in product(sizes, plan.scales):
            refuse(scaled_size(size, scale))
    except SpecError as error:
        if run.spec.signals != "auto":
            raise
        run.emit(Note(message=f"The teacher stays in the loop. {error.message}"))
        return None
    return plan


def recall_signals(run: Run, plan: Plan, layers: Names, load: Callable[[], torch.nn.Module]) -> Recall:
    """The teacher's signals of the training images, for all legs with a teacher."""
    assert run.teacher is not None and run.teacher_digest is not None

    def tell(text: str, is_warning: bool) -> None:
        if is_warning or dist.is_first():
            run.emit(warning(text) if is_warning else Note(message=text))

    return open_recall(
        plan,
        run.spec,
        run.train_set,
        Shift(run.teacher, layers, load, partial(remember_teacher, run)),
        run.store,
        teacher_digest=run.teacher_digest,
        network=run.teacher_network,
        device=run.device,
        tell=tell,
    )


def remember_teacher(run: Run) -> None:
    """Find out what the end of the run will say of the teacher, which is about to leave memory."""
    if not dist.is_first():
        return
    assert run.teacher is not None
    find_teacher_cost(run)
    for index in pictured(run):
        teacher_mask(run, index)


def find_teacher_cost(run: Run) -> None:
    """Measure what a pass of the teacher costs, once on each machine."""
    if run.teacher is None or run.teacher_network is None or run.teacher_cost is not None:
        return
    size = run.val_set.size
    key = fact_key(Cost, [*teacher_facts(run), size, run.environment, torch.get_num_threads()])
    run.teacher_cost = known_fact(run.store.folder, key, Cost)
    if run.teacher_cost is None:
        run.teacher_cost = measure_cost(run.teacher, run.teacher_network, len(run.classes), size)
        run.teacher.to(run.device)
        keep_fact(run.store.folder, key, run.teacher_cost)


def judge_teacher(run: Run) -> None:
    """Score the teacher on the validation split, where that has labels; raises WeakTeacherError below its floor."""
    assert run.teacher is not None and run.spec.teacher is not None
    if not run.val_set.labelled:
        run.emit(warning("The validation images have no labels: the teacher was not held against its floor."))
        return
    key = fact_key(Score, [*teacher_facts(run), run.val_set.fingerprint(), looks_of(run.spec)])
    known = known_fact(run.store.folder, key, Score)
    if any(dist.largest(known is None)) or known is None:
        run.scores["teacher"] = score_network(run, run.teacher, "teacher", 0, 0)
        keep_fact(run.store.folder, key, run.scores["teacher"])
    else:
        run.scores["teacher"] = known
        images = len(run.val_set)
        run.emit(Evaluated(subject="teacher", step=0, total_step=0, images=images, seconds=0.0, **known.model_dump()))
    miou = run.scores["teacher"].miou or 0.0
    if miou < run.spec.teacher.floor:
        raise WeakTeacherError(
            f"The teacher's mIoU on the validation split is {miou:.4f}, below the floor {run.spec.teacher.floor}.",
            field="/teacher/preprocess",
            hint="Its preprocessing is the commonest cause: check order (RGB or BGR), mean and std on the 0..255 scale,"
            " the image size, and that it knows these classes in this order. To train with it all the same, lower"
            " /teacher/floor.",
        )


def teacher_mask(run: Run, index: int) -> np.ndarray:
    """What the teacher makes of a validation image; it sees each once."""
    if index not in run.teacher_masks:
        assert run.teacher is not None
        run.teacher_masks[index] = mask_of(run, run.teacher, index).astype(np.uint8)
    return run.teacher_masks[index]


def teacher_facts(run: Run) -> list[Any]:
    """What everything that is found out of a teacher depends on."""
    assert run.teacher is not None and run.teacher_digest is not None
    identity = teacher_identity(run.teacher, run.teacher_digest, run.teacher_network)
    return [identity, run.spec.dataset.size, numerics(run.device, run.spec)]


def looks_of(spec: JobSpec) -> dict[str, Any]:
    """The parts of an evaluation that a score depends on."""
    return spec.evaluate.model_dump(mode="json", exclude={"every_epochs", "batch", "pictures", "floor"})
