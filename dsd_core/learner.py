"""The learner: everything that changes while a phase trains, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsd_core.checkpoint import flatten_optimizer, prefixed, restore_optimizer, stripped
from dsd_core.data.loader import Batch
from dsd_core.distill.task import DistillTask
from dsd_core.errors import SpecError
from dsd_core.models import build, default_taps, head_taps, load_weights, stride
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.weights import Fit, load_encoder
from dsd_core.optim import Precision, backward, build_optimizer
from dsd_core.spec import JobSpec, Loss, PixelSimilarity


@dataclass
class Learner:
    """A student on its way: its task, optimiser, moving average, loss scaler, and the best weights so far."""

    task: DistillTask
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    precision: Precision
    clip_norm: float
    started_from: Fit | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    best_miou: float = -1.0

    @property
    def student(self) -> Segmenter:
        return self.task.student

    @property
    def shown(self) -> Segmenter:
        """The network that is scored and exported: the moving average where there is one."""
        shown = self.student if self.average is None else self.average.module
        assert isinstance(shown, Segmenter)
        return shown

    def step(self, batch: Batch, rate: float, *, measure: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One optimiser step at learning rate `rate`. Returns the unweighted terms, and the gradient norms (`total`
        always)."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            terms = self.task(batch)
        norms = backward(self.task, terms, self.precision, measure=measure)
        self.precision.scaler.unscale_(self.optimizer)
        norms["total"] = nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return {name: value.detach() for name, value in terms.items()}, norms

    def keep_if_best(self, miou: float | None) -> None:
        if miou is not None and miou > self.best_miou:
            self.best_miou = miou
            self.best = {key: value.detach().clone() for key, value in self.shown.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, random generators included."""
        tensors = prefixed("student", self.student) | flatten_optimizer(self.optimizer)
        if self.average is not None:
            tensors |= prefixed("average", self.average)
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        return tensors

    def state(self) -> dict[str, Any]:
        return {"best_miou": self.best_miou, "scaler": self.precision.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Become what `tensors` and `state` were taken from."""
        self.student.load_state_dict(stripped("student", tensors))
        restore_optimizer(self.optimizer, tensors)
        if self.average is not None:
            self.average.load_state_dict(stripped("average", tensors))
        device = next(self.student.parameters()).device
        self.best = {key: value.to(device) for key, value in stripped("best", tensors).items()}
        self.best_miou = state["best_miou"]
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])


def build_learner(
    spec: JobSpec,
    losses: tuple[Loss, ...],
    teacher: Frozen | None,
    classes: int,
    device: torch.device,
    class_weights: Tensor | None,
) -> Learner:
    """A student at its start. The same seed gives the same student, whatever the losses. Raises SpecError,
    WeightsError."""
    training = spec.train
    torch.manual_seed(training.seed)
    student, started_from = build_student(spec, classes)
    student = student.to(device).to(memory_format=memory_format(spec))
    # The copy is made before the task hooks the student, or it would carry the hooks too.
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(training.ema)) if training.ema else None
    kinds = sorted({loss.layers for loss in losses if isinstance(loss, PixelSimilarity)})
    layers = {kind: choose_layers(spec, student, teacher, kind) for kind in kinds if teacher is not None}
    task = DistillTask(
        student,
        teacher,
        losses,
        student_layers={kind: pair[0] for kind, pair in layers.items()},
        teacher_layers={kind: pair[1] for kind, pair in layers.items()},
        class_weights=None if class_weights is None else class_weights.to(device),
    )
    precision = Precision(device, training)
    torch.manual_seed(training.seed)
    clip_norm = math.inf if training.clip_norm is None else training.clip_norm
    return Learner(task, build_optimizer(training, student), average, precision, clip_norm, started_from)


def build_student(spec: JobSpec, classes: int) -> tuple[Segmenter, Fit | None]:
    """The student's network with the weights it starts from, and how their file fitted. Raises WeightsError."""
    student, fit = spec.student, None
    module = build(student.network, classes)
    if student.weights is not None:
        fit = load_weights(module, Path(student.weights), field="/student/weights", min_share=student.weights_share)
    if student.encoder_file is not None:
        fit = load_encoder(
            module, Path(student.encoder_file), field="/student/encoder_file", min_share=student.weights_share
        )
    return Segmenter(module, student.preprocess, classes, stride(student.network)), fit


def choose_layers(
    spec: JobSpec, student: Segmenter, teacher: Frozen, kind: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Module names of both networks to compare, as many in each: the spec's taps, else defaults counted from the deep
    end."""
    assert spec.teacher is not None
    offered = head_taps if kind == "head" else default_taps
    chosen = [
        given if kind == "taps" and given else offered(network)
        for given, network in ((spec.student.taps, student.network), (spec.teacher.taps, teacher.network))
    ]
    both_given = kind == "taps" and spec.student.taps and spec.teacher.taps
    if both_given and len(chosen[0]) != len(chosen[1]):
        raise SpecError(
            f"The student has {len(chosen[0])} taps and the teacher {len(chosen[1])}.",
            field="/student/taps",
            hint="Name as many modules in each, shallow to deep; the first is compared with the first.",
        )
    count = min(map(len, chosen))
    if count < 2:
        raise SpecError(
            f"PSD compares at least two layers; student {chosen[0]}, teacher {chosen[1]}.",
            field="/student/taps",
            hint="Name two or more taps in both networks.",
        )
    return chosen[0][-count:], chosen[1][-count:]


def memory_format(spec: JobSpec) -> torch.memory_format:
    return torch.channels_last if spec.train.channels_last else torch.contiguous_format
