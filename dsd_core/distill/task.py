"""The task: a student, perhaps a teacher, and the list of losses between them. It returns its parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from dsd_core import dist
from dsd_core.data.loader import Batch
from dsd_core.distill.loss import AdversarialLoss, Channels, Feature, LossSpec, Outlook, Seen
from dsd_core.distill.signals import Signal
from dsd_core.distill.teaching import Names, Teaching, outlook_of, tapped
from dsd_core.models.compiling import Compile, compiled
from dsd_core.models.frozen import Frozen
from dsd_core.models.pointwise import pointwise_by_onednn
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.taps import Taps
from dsd_core.phases import phase

Recall = Callable[[Batch], Outlook]
"""Gives the teacher's signals of a batch."""


class DistillTask(nn.Module):
    """Computes every loss of the list for a batch.

    The student learns, and with it what losses learn beside it (`projections`); `critics` learn against it. Hooks exist
    only for the kinds of layers in `student_layers` and `teacher_layers`. `class_weights` (K) weigh the labels.
    With `recall` the teacher sees no batch here, and may be absent.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Frozen | None,
        losses: tuple[LossSpec, ...],
        *,
        student_layers: Names,
        teacher_layers: Names,
        class_weights: Tensor | None = None,
        recall: Recall | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = None if recall else teacher
        self.losses = losses
        self.teacher_layers = teacher_layers
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        channels = Channels(
            _channels(student, student.network, student_layers, "/student/taps"),
            _channels(self.teacher, self.teacher.network, teacher_layers, "/teacher/taps") if self.teacher else {},
            student.classes,
        )
        self.projections = _modules({_key(loss): loss.projection(channels) for loss in losses})
        self.critics = _modules(
            {_key(loss): loss.critic(channels) for loss in losses if isinstance(loss, AdversarialLoss)}
        )
        self._hooks = ExitStack()
        self._hooks.enter_context(pointwise_by_onednn(student))
        self._student_taps = tapped(self._hooks, student.network, student_layers, "/student/taps")
        self._recall = recall
        self._teaching: Teaching | None = None
        if self.teacher is not None:
            self._teaching = Teaching(self.teacher, teacher_layers)
            self._hooks.callback(self._teaching.close)
        self._bases = bases_of(losses)

    def close(self) -> None:
        """Leave the networks as they were, without hooks."""
        self._hooks.close()

    def forward(self, batch: Batch, whole: Batch | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each unweighted term by name, and what each critic minimises; all scalars, in float32.

        Of several processes (`dsd_core.dist`), and where the batch is a part of this process's `whole`, each gives its
        part; the sum over them is the term of the whole batch.
        """
        with phase("student"):
            student = self.student(batch.images_N3HW)
        seen = Seen(
            batch.images_N3HW,
            batch.labels_NHW,
            batch.valid_NHW,
            outlook_of(student, self._student_taps, self.student, batch.images_N3HW),
            self._teach(batch),
            self.class_weights,
        )
        with phase("losses"), torch.autocast(student.device.type, enabled=False):
            terms = {}
            for loss in self.losses:
                with phase(f"losses/{loss.term}"):
                    terms[loss.term] = loss.compute(self._for(loss, seen))
            criticism = {
                loss.term: loss.compute_critic(self._for(loss, seen))
                for loss in self.losses
                if isinstance(loss, AdversarialLoss)
            }
            return self._parts(terms, seen, whole or batch), self._parts(criticism, seen, whole or batch)

    def compiled(self, how: Compile) -> None:
        """Have torch.compile run the student, and a teacher in the loop, until `close`."""
        for network in (self.student.network, *((self.teacher.network,) if self.teacher is not None else ())):
            self._hooks.enter_context(compiled(network, how))

    def learned(self) -> list[nn.Parameter]:
        """Parameters that the losses are minimised over: the student's first, then those beside it."""
        return [p for part in (self.student, self.projections) for p in part.parameters() if p.requires_grad]

    def _parts(self, terms: dict[str, Tensor], seen: Seen, whole: Batch) -> dict[str, Tensor]:
        """The terms as parts of those of the whole batch: times this part's share of what each is a mean over."""
        alone = len(whole) == len(seen.labels_NHW)
        if not terms or (dist.world() == 1 and alone):
            return terms
        counting = [loss for loss in self.losses if loss.term in terms]
        counts = self._counts(counting, seen)
        totals = dist.total(counts if alone else self._counts(counting, _as_if_seen(whole, seen)))
        shares = counts / totals.clamp_min(1e-12)
        return {name: share * value for share, (name, value) in zip(shares, terms.items(), strict=True)}

    def _counts(self, losses: list[LossSpec], seen: Seen) -> Tensor:
        return torch.stack([loss.counted(self._for(loss, seen)).float() for loss in losses])

    def _teach(self, batch: Batch) -> Outlook | None:
        if self._recall is not None:
            with phase("signals"):
                return self._recall(batch)
        if self._teaching is None:
            return None
        with phase("teacher"):
            if self._bases is None:
                return self._teaching.features(batch.images_N3HW)
            return Outlook(None, kept=self._teaching.signals(batch.images_N3HW, self._bases))

    def _for(self, loss: LossSpec, seen: Seen) -> Seen:
        """What the loss sees: the batch, with the modules that are its own."""
        own = self.projections if _key(loss) in self.projections else self.critics
        return replace(seen, module=own[_key(loss)]) if _key(loss) in own else seen


def _as_if_seen(whole: Batch, part: Seen) -> Seen:
    """The whole batch with a student's outputs of the shapes that the part's have, and of no meaning: enough to
    count."""
    features = {
        kind: [Feature(_grown(feature.whole, len(whole)), feature.grid) for feature in several]
        for kind, several in part.student.features.items()
    }
    student = Outlook(_grown(part.student.logits, len(whole)), features)
    return Seen(whole.images_N3HW, whole.labels_NHW, whole.valid_NHW, student, None, part.class_weights)


def _grown(tensor: Tensor, images: int) -> Tensor:
    return tensor.detach()[:1].expand(images, *tensor.shape[1:])


def _key(loss: LossSpec) -> str:
    """Name of the loss's module; a ModuleDict takes no name that is one of its own methods, such as `pop`."""
    return f"of_{loss.term}"


def bases_of(losses: tuple[LossSpec, ...]) -> tuple[Signal, ...] | None:
    """The maps that all signals of the losses are derived from; None where a loss takes whole features."""
    signals = [loss.signals() for loss in losses]
    if any(asked is None for asked in signals):
        return None
    return tuple(dict.fromkeys(signal.base for asked in signals for signal in asked or ()))


def _modules(found: dict[str, nn.Module | None]) -> nn.ModuleDict:
    return nn.ModuleDict({term: module for term, module in found.items() if module is not None})


def _channels(run: nn.Module, network: nn.Module, layers: Names, field: str) -> dict[str, list[int]]:
    """Channels of each tapped feature, by one forward pass of a small image that leaves the network as it was."""
    if not layers:
        return {}
    was_training = run.training
    side = 2 * max(int(getattr(getattr(run, "module", run), "stride", 32)), 32)
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=next(run.buffers()).device)
    with ExitStack() as hooks, torch.no_grad():
        taps = {kind: hooks.enter_context(Taps(network, names, field=field)) for kind, names in layers.items()}
        run.eval()(image)
        run.train(was_training)
        return {kind: [feature.shape[1] for feature in tap.features()] for kind, tap in taps.items()}
