"""What a loss is: options that a job file gives, and a term computed from what two networks made of a batch.

A loss is a file in `dsd_core/distill/losses/`: a subclass of `LossSpec`, and the pure function it calls. Importing this
module does not import torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dsd_core.distill.lazy import ops, torch
from dsd_core.distill.signals import Logits, Signal, ValidOn, Values, grid_at
from dsd_core.parts import Fraction, Part, Weight, alternatives

if TYPE_CHECKING:
    from torch import Tensor, nn

Layers = Literal["taps", "head", "feature", "logits", "auxiliary"]
"""`taps`: the networks' taps. `head`: auxiliary logits (where both networks have them), head feature and logits.
`feature`: the head's input. `logits`: the head's output, before it is up-sampled. `auxiliary`: auxiliary logits, of the
student alone."""


@dataclass(frozen=True)
class Feature:
    """What a tapped module returned for a batch, NCHW; rows and columns beyond `grid` saw only padding. With `at_image`
    it is as large as what the network was given, so that its gradient comes from losses and lies as theirs do."""

    whole: Tensor
    grid: tuple[int, int]
    at_image: bool = False

    @cached_property
    def inside(self) -> Tensor:
        """What saw the image."""
        rows, columns = self.grid
        return self.whole[..., :rows, :columns] if self.at_image else ops.first(self.whole, self.grid)

    @property
    def energy(self) -> Tensor:
        """Its energy map N1HW. Its gradient is one pass over the feature."""
        return ops.energy(self.whole, self.grid)


@dataclass(frozen=True)
class Outlook:
    """What one network made of a batch: logits at the size of the images (None where nobody asked for them), the
    features of each kind of layers, and signals that were kept."""

    logits_NKHW: Tensor | None
    features: Mapping[str, Sequence[Feature]] = field(default_factory=dict)
    kept: Mapping[Signal, Values] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """The logits, of an outlook that has them."""
        assert self.logits_NKHW is not None
        return self.logits_NKHW

    def inside(self, layers: str) -> list[Tensor]:
        """The features NCHW of a kind of layers, shallow to deep."""
        return [feature.inside for feature in self.features.get(layers, ())]

    def energies(self, layers: str) -> list[Tensor]:
        """Their energy maps N1HW."""
        return [feature.energy for feature in self.features[layers]]

    def tell(self, signal: Signal, size: tuple[int, int], valid_on: ValidOn) -> Values:
        """A signal's value for a batch of this (height, width); kept ones are not computed anew."""
        if signal in self.kept:
            return self.kept[signal]
        maps = self.kept.get(signal.base) or signal.base.of(self, size)
        return signal.derive(maps, valid_on)


@dataclass(frozen=True)
class Seen:
    """A batch as the student and the teacher saw it. `valid_NHW` marks the pixels that count, `labels_NHW` has 255
    where nothing is known, `class_weights` (K) weigh the labels; `module` is what the loss itself learns."""

    images_N3HW: Tensor
    labels_NHW: Tensor
    valid_NHW: Tensor
    student: Outlook
    teacher: Outlook | None = None
    class_weights: Tensor | None = None
    module: nn.Module | None = None
    on_grids: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.labels_NHW.shape[-2:]
        return height, width

    @property
    def taught(self) -> Outlook:
        """What the teacher made of the batch, for losses that have one."""
        assert self.teacher is not None
        return self.teacher

    def told(self, signal: Signal) -> Values:
        """What the teacher says of the batch."""
        with torch.no_grad():
            return self.taught.tell(signal, self.size, self.valid_on)

    def valid_on(self, like: Tensor) -> Tensor:
        """bool N x H x W: the positions that count on the grid of a tensor; found once a grid."""
        grid = ops.grid_of(like)
        if grid not in self.on_grids:
            self.on_grids[grid] = ops.valid_on(self.valid_NHW, like)
        return self.on_grids[grid]


@dataclass(frozen=True)
class Channels:
    """Channels of the features of each kind, in both networks, and the number of classes."""

    student: dict[str, list[int]]
    teacher: dict[str, list[int]]
    classes: int


class LossSpec(Part):
    """One term of the total. Pixels that are ignored do not count in any term."""

    loss: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")] | None = None
    """What the term is called where one loss stands twice; by default it has the loss's own name."""
    weight: Annotated[Weight | Literal["auto"], alternatives("give a number from 0 to 1000000, or `auto`.")] = 1.0
    """Factor of the term. `auto`: its gradient at the student's parameters gets the norm of the gradient of the first
    term whose weight is a number; measured every `train.norms_every` steps, averaged, and used from the next step."""
    warmup: Fraction = 0.0
    """Share of the steps over which the weight rises linearly from zero."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the weight falls to zero over the steps after the warm-up."""

    needs_teacher: ClassVar[bool] = True

    @property
    def term(self) -> str:
        """The term's name in logs, metrics and results."""
        return self.name or self.loss

    @property
    def uses_teacher(self) -> bool:
        return self.needs_teacher

    @property
    def uses_labels(self) -> bool:
        """Whether it can do nothing for images without labels."""
        return not self.uses_teacher

    @property
    def needs_class_shares(self) -> bool:
        """Whether it weighs the classes by their shares of the training pixels."""
        return False

    @property
    def counts_by_teacher(self) -> bool:
        """Whether what the term is a mean over depends on what the teacher finds."""
        return False

    def student_layers(self) -> tuple[Layers, ...]:
        """Kinds of layers that the term needs of the student, beside its logits."""
        return ()

    def teacher_layers(self) -> tuple[Layers, ...]:
        return self.student_layers()

    def signals(self) -> tuple[Signal, ...] | None:
        """All that it takes of the teacher; None: whole features, which are not kept."""
        return None if self.uses_teacher else ()

    def projection(self, channels: Channels) -> nn.Module | None:
        """What the loss learns beside the student, never part of the exported network."""
        return None

    @abstractmethod
    def compute(self, seen: Seen) -> Tensor:
        """The unweighted term, a scalar."""

    def counted(self, seen: Seen) -> Tensor:
        """What the term is a mean over, in this batch: its images, or the positions that count. Parts of a
        batch are weighed by it."""
        return seen.labels_NHW.new_tensor(len(seen.labels_NHW), dtype=torch.float32)

    def ramp(self, progress: float) -> float:
        """Factor of the weight, in [0, 1], at `progress`: optimiser step / steps of the phase, in (0, 1]."""
        rise = min(1.0, progress / self.warmup) if self.warmup else 1.0
        left = 1.0 - max(0.0, progress - self.warmup) / max(1.0 - self.warmup, 1e-9)
        if self.decay == "linear":
            return rise * left
        return rise * (1 - math.cos(math.pi * left)) / 2 if self.decay == "cosine" else rise


class AdversarialLoss(LossSpec):
    """A loss with a critic: a network trained against the student, with an optimiser of its own."""

    @abstractmethod
    def critic(self, channels: Channels) -> nn.Module:
        """The critic, with random weights."""

    @abstractmethod
    def compute_critic(self, seen: Seen) -> Tensor:
        """What the critic minimises, a scalar; nothing flows back into the student."""


class LogitLoss(LossSpec):
    """A loss between the logits of both networks, on one grid."""

    logits_at: Literal["image", "head"] = "image"
    """`image`: the logits at the size of the crop. `head`: as the heads give them, before they are up-sampled; the
    teacher's are resized to the student's grid."""
    stride: Annotated[int, Field(ge=1, le=64)] | None = None
    """The logits are compared on the grid of the crop divided by this (area average). None leaves their grid."""

    def student_layers(self) -> tuple[Layers, ...]:
        return ("logits",) if self.logits_at == "head" else ()

    @property
    def kept_logits(self) -> Logits:
        return Logits(self.logits_at, self.stride if self.stride != 1 else None)

    def signals(self) -> tuple[Signal, ...] | None:
        return (self.kept_logits,)

    def logits(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of student and teacher, and the positions that count, on the loss's grid."""
        student, valid = self.student_logits(seen)
        return student, seen.told(self.kept_logits)[0], valid

    def student_logits(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Logits of the student, and the positions that count, on the loss's grid."""
        student = seen.student.logits if self.logits_at == "image" else seen.student.inside("logits")[0]
        if self.stride is not None and self.stride > 1:
            student = ops.resize(ops.widen(student), grid_at(seen.size, self.stride))
        return student, seen.valid_on(student)


class FeatureLoss(LossSpec):
    """A loss between features of both networks."""

    on: Literal["feature", "taps"] = "feature"
    """`feature`: the input of each network's head. `taps`: each pair of taps, the mean over them."""

    def student_layers(self) -> tuple[Layers, ...]:
        return (self.on,)

    def mean_over_pairs(self, seen: Seen, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Mean of `term(student, teacher)` over the pairs of features; the student's are projected where the loss has
        a projection."""
        features = seen.student.inside(self.on)
        if seen.module is not None:
            features = [project(x) for project, x in zip(seen.module.children(), features, strict=True)]
        pairs = zip(features, seen.taught.inside(self.on), strict=True)
        return torch.stack([term(student, teacher) for student, teacher in pairs]).mean()
