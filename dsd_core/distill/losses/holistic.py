"""Holistic distillation: a critic learns to tell the teacher's class maps from the student's, and the student to look
like the teacher. Liu, Chen, Liu, Qin, Luo, Wang, CVPR 2019, arXiv 1903.04197.

Adversarial training is known to be unstable (users report NaN in every public implementation), so no preset has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dsd_core.distill.lazy import F, ops, torch
from dsd_core.distill.loss import AdversarialLoss, Channels, LogitLoss, Seen
from dsd_core.parts import Weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["skd_holistic"]

Objective = Literal["hinge", "wgan_gp"]


class Holistic(LogitLoss, AdversarialLoss):
    """SKD holistic: minus the critic's score of the student's class maps given the image. Adversarial."""

    loss: Literal["skd_holistic"] = "skd_holistic"
    weight: Weight = 0.1
    stride: Annotated[int, Field(ge=1, le=64)] | None = 8
    objective: Objective = "hinge"
    """What the critic minimises: the hinge loss, or Wasserstein with a gradient penalty of weight 10."""

    def critic(self, channels: Channels) -> nn.Module:
        return ops.critic(channels.classes)

    def compute(self, seen: Seen) -> Tensor:
        critic, student, _, image = self._views(seen)
        critic.requires_grad_(False)
        score = skd_holistic(critic, student, image)
        critic.requires_grad_(True)
        return score

    def compute_critic(self, seen: Seen) -> Tensor:
        critic, student, teacher, image = self._views(seen)
        return critic_loss(critic, student.detach(), teacher, image, self.objective)

    def _views(self, seen: Seen) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """The critic, the class probabilities of student and teacher (zero where nothing counts), and the image."""
        assert seen.module is not None
        student, teacher, valid = self.logits(seen)
        counts = valid.unsqueeze(1)
        p_S, p_T = (ops.widen(logits).softmax(dim=1).where(counts, 0) for logits in (student, teacher.detach()))
        return seen.module, p_S, p_T, ops.resize(seen.images_N3HW.float() / 255, ops.grid_of(p_S))


def skd_holistic(critic: Callable[[Tensor, Tensor], Tensor], student_probabilities: Tensor, image: Tensor) -> Tensor:
    """Minus the critic's mean score of the student's class probabilities NKHW given the image N3HW in 0..1."""
    return -critic(student_probabilities, image).mean()


def critic_loss(
    critic: Callable[[Tensor, Tensor], Tensor],
    student_probabilities: Tensor,
    teacher_probabilities: Tensor,
    image: Tensor,
    objective: Objective = "hinge",
) -> Tensor:
    """What the critic minimises: teacher above student, by the hinge loss or by WGAN-GP (Gulrajani et al. 2017)."""
    real, fake = critic(teacher_probabilities, image), critic(student_probabilities, image)
    if objective == "hinge":
        return (F.relu(1 - real) + F.relu(1 + fake)).mean()
    share = torch.rand(len(image), 1, 1, 1, device=image.device)
    between = (share * teacher_probabilities + (1 - share) * student_probabilities).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between, image).sum(), between, create_graph=True)
    return (fake - real).mean() + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
