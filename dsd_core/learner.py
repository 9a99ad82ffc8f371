"""The learner: everything that changes while a phase trains, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsd_core import dist
from dsd_core.checkpoint import flatten_optimizer, prefixed, restore_optimizer, stripped
from dsd_core.data.loader import Batch
from dsd_core.distill.loss import Layers
from dsd_core.distill.losses.double_similarity import PixelSimilarity
from dsd_core.distill.presets import Loss
from dsd_core.distill.task import DistillTask, Recall
from dsd_core.distill.teaching import Names
from dsd_core.errors import SpecError
from dsd_core.models import aux_tap, build, default_taps, head_taps, load_weights, stride
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.weights import Fit, load_encoder
from dsd_core.optim import Measured, Precision, Weights, backward, build_optimizer
from dsd_core.spec import JobSpec

RANKS_APART = 0x9E3779B97F4A7C15
"""Between the seeds of processes that train together, whose dropout must differ."""
CRITIC_RATE = 4e-4  # as the released code of structured knowledge distillation


@dataclass
class Learner:
    """A student on its way: its task, optimiser, moving average, loss scaler, and the best weights so far."""

    task: DistillTask
    weights: Weights
    optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    average: AveragedModel | None
    precision: Precision
    clip_norm: float
    accumulate: int = 1
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

    def step(
        self, batch: Batch, rate: float, progress: float, *, measure: bool = False, logged: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One optimiser step at learning rate `rate`; `progress` in (0, 1] is the share of the phase behind it.

        Several processes take it together, each with its share of the batch, and a process may take its share in
        parts, one after the other: batch normalisation sees a part, and its running statistics are averaged over
        processes. Returns the unweighted terms with `loss`, their weighted sum, and the gradient norms: `total`, and
        with `measure` that of each weighted term. With `logged` the terms are those of the whole batch, else this
        process's part of them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic_optimizer is not None:
            self.critic_optimizer.zero_grad(set_to_none=True)
        self.weights.progress = progress
        measured = Measured(self.task, self.precision)
        parts = [self._part(part, batch, measured if measure else None) for part in batch.split(self.accumulate)]
        learned = self.task.learned()
        dist.sum_([parameter.grad for parameter in learned if parameter.grad is not None])
        self.precision.scaler.unscale_(self.optimizer)
        total = nn.utils.clip_grad_norm_(learned, self.clip_norm, foreach=True)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self._average_statistics(len(batch))
        if self.average is not None:
            self.average.update_parameters(self.student)
        if self.critic_optimizer is not None:
            dist.sum_([p.grad for p in self.task.critics.parameters() if p.grad is not None])
            self.critic_optimizer.step()
        terms = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        if logged:
            dist.sum_(list(terms.values()))
        return terms, {"total": total} | (self._norms(measured) if measure else {})

    def _part(self, batch: Batch, whole: Batch, measured: Measured | None) -> dict[str, Tensor]:
        """Add the gradients of a part of a batch; returns its unweighted terms, as parts of the whole batch's, and
        `loss`."""
        with self.precision.autocast():
            terms, criticism = self.task(batch, whole)
        if measured is not None:
            measured.add(terms)
        backward(self.task, terms, self.weights, self.precision)
        if criticism:
            torch.stack(list(criticism.values())).sum().backward()
        return {name: value.detach() for name, value in terms.items()}

    def _norms(self, measured: Measured) -> dict[str, Tensor]:
        """Of each weighted term's gradient, after the weights that are `auto` were found from them."""
        norms = measured.norms()
        self.weights.balance(norms)
        now = self.weights.now()
        return {term: now[term] * norm for term, norm in norms.items()}

    def _average_statistics(self, images: int) -> None:
        if dist.world() == 1:
            return
        norms = [module for module in self.student.modules() if isinstance(module, _BatchNorm)]
        found = (statistic for norm in norms for statistic in (norm.running_mean, norm.running_var))
        statistics = [statistic for statistic in found if statistic is not None]
        count = torch.tensor(float(images))
        share = count / dist.total(count)
        for statistic in statistics:
            statistic.mul_(share)
        dist.sum_(statistics)

    def keep_if_best(self, miou: float | None) -> None:
        """Remember the weights that are shown, where they score higher than any before."""
        if miou is not None and miou > self.best_miou:
            self.best_miou = miou
            self.best = {key: value.detach().clone() for key, value in self.shown.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, random generators of all processes included."""
        tensors = prefixed("student", self.student) | flatten_optimizer("optimizer", self.optimizer)
        tensors |= prefixed("projections", self.task.projections) | prefixed("critics", self.task.critics)
        if self.critic_optimizer is not None:
            tensors |= flatten_optimizer("critic_optimizer", self.critic_optimizer)
        if self.average is not None:
            tensors |= prefixed("average", self.average)
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for rank, generator in enumerate(dist.gathered(torch.get_rng_state())):
            tensors[f"random.cpu.{rank}"] = generator
        if torch.cuda.is_available():
            for rank, generator in enumerate(dist.gathered(torch.cuda.get_rng_state())):
                tensors[f"random.cuda.{rank}"] = generator
        return tensors

    def state(self) -> dict[str, Any]:
        return {
            "best_miou": self.best_miou,
            "scaler": self.precision.scaler.state_dict(),
            "found_weights": self.weights.found,
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Become what `tensors` and `state` were taken from."""
        self.student.load_state_dict(stripped("student", tensors))
        self.task.projections.load_state_dict(stripped("projections", tensors))
        self.task.critics.load_state_dict(stripped("critics", tensors))
        restore_optimizer("optimizer", self.optimizer, tensors)
        if self.critic_optimizer is not None:
            restore_optimizer("critic_optimizer", self.critic_optimizer, tensors)
        if self.average is not None:
            self.average.load_state_dict(stripped("average", tensors))
        device = next(self.student.parameters()).device
        self.best = {key: value.to(device) for key, value in stripped("best", tensors).items()}
        self.best_miou = state["best_miou"]
        self.weights.found = dict(state["found_weights"])
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        cpu, cuda = f"random.cpu.{dist.rank()}", f"random.cuda.{dist.rank()}"
        if cpu in tensors:  # a process more than there were goes on with what its seed gave it
            torch.set_rng_state(tensors[cpu])
        if cuda in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[cuda])


def build_learner(
    spec: JobSpec,
    losses: tuple[Loss, ...],
    teacher: Frozen | None,
    classes: int,
    device: torch.device,
    class_weights: Tensor | None,
    recall: Recall | None = None,
) -> Learner:
    """A student at its start. The same seed gives the same student, whatever the losses. With `recall` the teacher may
    be at rest. Raises SpecError, WeightsError."""
    training = spec.train
    torch.manual_seed(training.seed)
    student, started_from = build_student(spec, classes)
    student = student.to(device).to(memory_format=memory_format(spec))
    # The copy is made before the task hooks the student, or it would carry the hooks too.
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(training.ema)) if training.ema else None
    student_layers, teacher_layers = choose_layers(spec, losses, student, teacher)
    task = DistillTask(
        student,
        teacher,
        losses,
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        class_weights=None if class_weights is None else class_weights.to(device),
        recall=recall,
    ).to(device)
    precision = Precision(device, training)
    torch.manual_seed((training.seed + dist.rank() * RANKS_APART) % 2**63)
    clip_norm = math.inf if training.clip_norm is None else training.clip_norm
    critics = list(task.critics.parameters())
    return Learner(
        task,
        Weights(losses),
        build_optimizer(training, task.learned()),
        torch.optim.Adam(critics, CRITIC_RATE, betas=(0.5, 0.9), fused=True) if critics else None,
        average,
        precision,
        clip_norm,
        training.accumulate,
        started_from,
    )


def build_student(spec: JobSpec, classes: int) -> tuple[Segmenter, Fit | None]:
    """The student's network with the weights it starts from, and how their file fitted. Raises WeightsError."""
    student, fit = spec.student, None
    network, preprocess = student.architecture
    module = build(network, classes)
    if student.weights is not None:
        fit = load_weights(module, Path(student.weights), field="/student/weights", min_share=student.weights_share)
    if student.encoder_file is not None:
        fit = load_encoder(
            module, Path(student.encoder_file), field="/student/encoder_file", min_share=student.weights_share
        )
    return Segmenter(module, preprocess, classes, stride(network)), fit


def choose_layers(
    spec: JobSpec, losses: tuple[Loss, ...], student: Segmenter, teacher: Frozen | None
) -> tuple[Names, Names]:
    """Module names of student and teacher for each kind of layers that the losses ask for. Raises SpecError."""
    of_student = {kind for loss in losses for kind in loss.student_layers()}
    student_layers: Names = {}
    teacher_layers: Names = {}
    auxiliary = aux_tap(student.network)
    if "auxiliary" in of_student and auxiliary is not None:
        student_layers["auxiliary"] = (auxiliary,)
    for kind in sorted(of_student - {"auxiliary"}):
        assert teacher is not None and spec.teacher is not None
        student_layers[kind], teacher_layers[kind] = _pair_of_layers(kind, spec, student.network, teacher.network)
    return student_layers, teacher_layers


_PART_OF_HEAD = {"feature": slice(-2, -1), "logits": slice(-1, None)}


def _pair_of_layers(
    kind: Layers, spec: JobSpec, student: nn.Module, teacher: nn.Module
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As many names in each network: the spec's taps, else defaults, counted from the deep end."""
    if kind in _PART_OF_HEAD:
        part = _PART_OF_HEAD[kind]
        return head_taps(student)[part], head_taps(teacher)[part]
    if kind == "head":
        chosen = head_taps(student), head_taps(teacher)
    else:
        assert spec.teacher is not None
        chosen = spec.student.taps or default_taps(student), spec.teacher.taps or default_taps(teacher)
        if spec.student.taps and spec.teacher.taps and len(chosen[0]) != len(chosen[1]):
            raise SpecError(
                f"The student has {len(chosen[0])} taps and the teacher {len(chosen[1])}.",
                field="/student/taps",
                hint="Name as many modules in each, shallow to deep; the first is compared with the first.",
            )
    count = min(map(len, chosen))
    if count < 2 and any(isinstance(loss, PixelSimilarity) for loss in spec.losses):
        raise SpecError(
            f"PSD compares at least two layers; student {chosen[0]}, teacher {chosen[1]}.",
            field="/student/taps",
            hint="Name two or more taps in both networks.",
        )
    return chosen[0][-count:], chosen[1][-count:]


def memory_format(spec: JobSpec) -> torch.memory_format:
    return torch.channels_last if spec.train.channels_last else torch.contiguous_format
