"""Optimiser, schedule, precision, and the backward pass that can measure each term."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dsd_core.distill.task import DistillTask
from dsd_core.errors import DivergedError
from dsd_core.spec import Loss, Training


def build_optimizer(training: Training, module: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay only on weights of two or more dimensions, so not on biases and norms."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


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


def backward(task: DistillTask, terms: dict[str, Tensor], precision: Precision, *, measure: bool) -> dict[str, Tensor]:
    """Accumulate the gradient of `terms["loss"]`; with `measure` also return the norm of each weighted term's own
    gradient.

    Measuring takes one backward pass a term instead of one in all.
    """
    if not measure or len(task.losses) == 1:
        precision.scaler.scale(terms["loss"]).backward()
        return {}
    parameters = [p for p in task.student.parameters() if p.requires_grad]
    scale = precision.scaler.get_scale() if precision.scaler.is_enabled() else 1.0
    norms: dict[str, Tensor] = {}
    for loss in task.losses:
        term = precision.scaler.scale(loss.weight * terms[loss.loss])
        if not term.requires_grad:
            continue
        last = loss is task.losses[-1]
        gradients = torch.autograd.grad(term, parameters, retain_graph=not last, allow_unused=True)
        norms[loss.loss] = nn.utils.get_total_norm([g for g in gradients if g is not None]) / scale
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return norms


def refuse_non_finite(losses: tuple[Loss, ...], bad: Tensor, phase: str, step: int) -> None:
    """Raise DivergedError that names the terms marked in `bad` (bool, one a loss); this waits for the device."""
    if bad.any():
        names = ", ".join(loss.loss for loss, is_bad in zip(losses, bad.tolist(), strict=True) if is_bad)
        raise DivergedError(
            f"The loss {names} became NaN or infinite in phase {phase}, at or shortly before step {step}.",
            field="/train/learning_rate",
            hint="Lower the learning rate, set clip_norm, or lower that loss's weight. The last checkpoint is finite.",
        )
