"""What a job trains, one student after the other: a leg is a phase with a seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from dsd_core.distill.presets import Loss
from dsd_core.events import Phase, leg_name
from dsd_core.spec import JobSpec


@dataclass(frozen=True)
class Leg:
    """One student to train, `place` others before it. `further`: with another seed than the job's first."""

    place: int
    phase: Phase
    seed: int
    further: bool

    @property
    def event_seed(self) -> int | None:
        """The seed as events carry it."""
        return self.seed if self.further else None

    @property
    def name(self) -> str:
        """What its figures are called: `student`, `student/seed-1`."""
        return leg_name(self.phase, self.event_seed)

    @property
    def exported(self) -> bool:
        """The student of the first seed is the job's: to choose the best of several would be optimistic."""
        return self.phase == "student" and not self.further


def legs(spec: JobSpec) -> tuple[Leg, ...]:
    """The legs of a job in their order: for each seed the baseline, where it is asked for, then the student."""
    seeds = seeds_of(spec)
    phases: tuple[Phase, ...] = ("baseline", "student") if spec.baseline else ("student",)
    trained = enumerate(product(seeds, phases))
    return tuple(Leg(place, phase, seed, further=seed != seeds[0]) for place, (seed, phase) in trained)


def seeds_of(spec: JobSpec) -> tuple[int, ...]:
    return spec.seeds or (spec.train.seed,)


def with_seed(spec: JobSpec, seed: int) -> JobSpec:
    """The spec of one leg: everything that is drawn is drawn from `seed`."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"seed": seed})})


def losses_of(spec: JobSpec, phase: Phase) -> tuple[Loss, ...]:
    """The spec's losses; in the baseline only those that need no teacher."""
    return tuple(loss for loss in spec.losses if phase == "student" or not loss.uses_teacher)
