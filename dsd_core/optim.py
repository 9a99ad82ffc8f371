"""Optimiser, schedule, precision, the backward pass, and how each term's gradient is measured."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dsd_core import dist
from dsd_core.distill.presets import Loss
from dsd_core.distill.task import DistillTask
from dsd_core.errors import DivergedError
from dsd_core.spec import Training


def build_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay only on weights of two or more dimensions, so not on biases and norms."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Fused, a step on the 120 tensors of a small student takes a third of the CPU time.
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The rate of optimiser step 1..steps: a function of the step alone, so a resumed run needs no scheduler state."""
    done = (step - 1) / steps
    if training.schedule == "poly":
        warm = min(1.0, step / training.warmup_steps) if training.warmup_steps else 1.0
        return training.learning_rate * warm * (1 - done) ** training.power
    # One cycle with cosine arms (Smith & Topin 2018): up from 1/25 over 30 % of the steps, down to 1/10000.
    low, last, rise = training.learning_rate / 25, training.learning_rate / 1e4, 0.3
    if done < rise:
        return _cosine(low, training.learning_rate, done / rise)
    return _cosine(training.learning_rate, last, (done - rise) / (1 - rise))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class Precision:
    """Mixed precision where the device has it: bfloat16, or float16 with loss scaling; elsewhere both parts do
    nothing."""

    def __init__(self, device: torch.device, training: Training) -> None:
        self.device = device
        self.enabled = training.amp == "auto" and device.type == "cuda"
        self.dtype = torch.bfloat16 if self.enabled and torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.enabled and self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)


def backward(task: DistillTask, terms: dict[str, Tensor], weights: Weights, precision: Precision) -> None:
    """Add the gradient of the weighted sum of the terms to what is learned, and put that sum into `terms` as `loss`."""
    now = weights.now()
    terms["loss"] = torch.stack([now[term] * terms[term] for term in now]).sum()
    precision.scaler.scale(terms["loss"]).backward()


class Measured:
    """The gradient of each unweighted term at the student's parameters, by a backward pass of its own.

    The graph stays for `backward`, whose bits do not depend on whether anything was measured.
    """

    def __init__(self, task: DistillTask, precision: Precision) -> None:
        self._task = task
        self._precision = precision
        self._gradients: dict[str, list[Tensor | None]] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """The terms of a part of the batch. A term without any gradient is left out, as is a single one, whose norm
        is the total."""
        if len(self._task.losses) == 1:
            return
        parameters = list(self._task.student.parameters())
        for loss in self._task.losses:
            scaled = self._precision.scaler.scale(terms[loss.term])
            if scaled.requires_grad:
                found = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
                before = self._gradients.get(loss.term, [None] * len(found))
                self._gradients[loss.term] = list(map(_sum, before, found))

    def norms(self) -> dict[str, Tensor]:
        """Of the whole batch, over all processes."""
        for gradients in self._gradients.values():
            dist.sum_([gradient for gradient in gradients if gradient is not None])
        return {term: _norm(gradients, self._precision) for term, gradients in self._gradients.items()}


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _norm(gradients: list[Tensor | None], precision: Precision) -> Tensor:
    scale = precision.scaler.get_scale() if precision.scaler.is_enabled() else 1.0
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]) / scale


class Weights:
    """What each term's weight is at a step: the spec's, or found from gradients where it says `auto`, times its ramp.

    A weight that is `auto` is 0 until gradients were first measured, which training does in its first step.
    """

    MEMORY = 0.9
    """Share that the average of a found weight keeps at each measurement."""

    def __init__(self, losses: tuple[Loss, ...]) -> None:
        self.losses = losses
        self.found: dict[str, float] = {}
        self.progress = 1.0

    def now(self) -> dict[str, float]:
        return {loss.term: self._base(loss) * loss.ramp(self.progress) for loss in self.losses}

    def balance(self, norms: dict[str, Tensor]) -> None:
        """Bring found weights up to date with the norms of the unweighted terms' gradients; this waits for the
        device."""
        automatic = [loss.term for loss in self.losses if loss.weight == "auto" and loss.term in norms]
        if not automatic:
            return
        first = next(loss for loss in self.losses if loss.weight != "auto")
        goal = self._base(first) * float(norms[first.term]) if first.term in norms else 0.0
        for term in automatic:
            norm = float(norms[term])
            if not (0 < norm < math.inf and 0 < goal < math.inf):
                continue
            wanted = min(goal / norm, 1e6)
            self.found[term] = self.MEMORY * self.found.get(term, wanted) + (1 - self.MEMORY) * wanted

    def _base(self, loss: Loss) -> float:
        return self.found.get(loss.term, 0.0) if loss.weight == "auto" else loss.weight


def refuse_non_finite(losses: tuple[Loss, ...], bad: Tensor, phase: str, step: int) -> None:
    """Raise DivergedError that names the terms marked in `bad` (bool, one a loss) in any process; this waits for the
    device."""
    marked = dist.largest(*bad.float().tolist())
    names = ", ".join(loss.term for loss, is_bad in zip(losses, marked, strict=True) if is_bad)
    if names:
        raise _diverged(f"The loss {names}", phase, step)


def refuse_non_finite_weights(student: nn.Module, phase: str, step: int) -> None:
    """Raise DivergedError where a weight is NaN or infinite, which a step may leave whose losses were all finite."""
    if not torch.stack([tensor.isfinite().all() for tensor in student.state_dict().values()]).all():
        raise _diverged("A weight of the student", phase, step)


def _diverged(what: str, phase: str, step: int) -> DivergedError:
    return DivergedError(
        f"{what} became NaN or infinite in phase {phase}, at or shortly before step {step}.",
        field="/train/learning_rate",
        hint="Lower the learning rate, set clip_norm, or lower that loss's weight. The last checkpoint is finite.",
    )
