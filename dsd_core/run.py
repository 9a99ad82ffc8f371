"""A run: what it stands on and what it has found, and what every part of it does with networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsd_core import checkpoint
from dsd_core.data import Dataset
from dsd_core.data.loader import steps_per_epoch
from dsd_core.environment import Environment
from dsd_core.evaluate import score_split
from dsd_core.events import (
    Cost,
    Event,
    FurtherSeed,
    Note,
    Score,
    SignalsUse,
    Subject,
)
from dsd_core.inference import predictor
from dsd_core.learner import Learner, build_learner
from dsd_core.legs import Leg, legs, losses_of, with_seed
from dsd_core.meter import Spent
from dsd_core.models.frozen import Frozen
from dsd_core.network_spec import NetworkSpec
from dsd_core.signals.recall import Counts, Recall
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec


@dataclass
class Run:
    """What a run stands on, and the scores it has collected."""

    spec: JobSpec
    out: Path
    emit: Callable[[Event], None]
    stop: Callable[[], bool]
    enough: Callable[[], bool]
    pulse: Callable[[], None]
    writer: checkpoint.Writer
    store: Store  # the teacher's signals, and its scores
    device: torch.device
    environment: Environment
    train_set: Dataset
    val_set: Dataset
    class_weights: Tensor | None
    teacher: Frozen | None = None
    teacher_network: NetworkSpec | None = None
    teacher_digest: str | None = None
    teacher_cost: Cost | None = None  # known from when it left memory on
    teacher_masks: dict[int, np.ndarray] = field(default_factory=dict)  # of validation images that are drawn
    recall: Recall | None = None  # None: the teacher is in the loop
    recalled: Counts = field(default_factory=Counts)  # by earlier attempts, in all processes
    signals: SignalsUse | None = None  # what came of it, once all is trained
    scores: dict[str, Score] = field(default_factory=dict)  # of the teacher and of each leg, by name
    spent: dict[str, Spent] = field(default_factory=dict)  # on the training of each leg
    kept: dict[str, Tensor] = field(default_factory=dict)  # weights of the student that is to be exported
    bit_exact: bool = True  # it ends with the bits of a run that was never interrupted
    stopped_step: int | None = None  # of all steps, where there was enough of it

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_set.classes

    @property
    def legs(self) -> tuple[Leg, ...]:
        return legs(self.spec)

    @property
    def epoch_steps(self) -> int:
        return steps_per_epoch(len(self.train_set), self.spec.train.batch)

    @property
    def steps(self) -> int:
        """Optimiser steps of one leg."""
        return self.spec.train.epochs * self.epoch_steps

    @property
    def total_steps(self) -> int:
        return self.steps * len(self.legs)

    def goes_on(self) -> bool:
        """Show that the work moves; False when it is to stop."""
        self.pulse()
        return not self.stop()

    def total_step(self, leg: Leg, step: int) -> int:
        """Steps of the whole run up to `step` of a leg."""
        return leg.place * self.steps + step


def never() -> bool:
    return False


def warning(text: str) -> Note:
    return Note(level="warning", message=text)


def build_leg(run: Run, leg: Leg) -> Learner:
    spec, teacher = with_seed(run.spec, leg.seed), run.teacher if leg.phase == "student" else None
    recall = run.recall if leg.phase == "student" else None
    losses = losses_of(spec, leg.phase)
    return build_learner(spec, losses, teacher, len(run.classes), run.device, run.class_weights, recall)


def score_network(
    run: Run, network: torch.nn.Module, subject: Subject, step: int, total_step: int, seed: FurtherSeed = None
) -> Score:
    """Score a network on the validation split and say so; leaves it in eval mode. Raises Interrupted."""
    network.eval()
    return score_split(
        network,
        run.val_set,
        run.spec.evaluate,
        run.emit,
        run.goes_on,
        run.device,
        subject=subject,
        seed=seed,
        step=step,
        total_step=total_step,
    )


def pictured(run: Run) -> range:
    """Validation images that are drawn."""
    return range(min(run.spec.evaluate.pictures, len(run.val_set)))


def mask_of(run: Run, network: torch.nn.Module, index: int) -> np.ndarray:
    """The class of each pixel of a validation image."""
    image_HW3, _ = run.val_set[index]
    image_N3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).unsqueeze(0).to(run.device)
    with torch.inference_mode():
        mask: np.ndarray = predictor(network, run.spec.evaluate)(image_N3HW).argmax(1)[0].cpu().numpy()
    return mask
