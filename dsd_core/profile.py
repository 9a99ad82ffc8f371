"""`dsd profile`: where the time of a job's training step goes, and what limits it.

The job's own training runs for some steps in a temporary folder; the phases are those that the code itself names.
"""

from __future__ import annotations

import math
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dsd_core.errors import Interrupted, SpecError
from dsd_core.models.compiling import eagerly
from dsd_core.models.cost import counting
from dsd_core.optim import Precision
from dsd_core.phases import Clock, Times, clocked
from dsd_core.prepare import prepare
from dsd_core.run import Run, never
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec
from dsd_core.train import train_leg

WARMING = 4
"""Steps before those that are measured: the first few are slower."""
PHASES = ("data", "teacher", "signals", "student", "losses", "backward", "optimizer", "other")
PEAK_S = 0.5


@dataclass(frozen=True)
class Profile:
    """What a step took on average. `phases` come in the order of a step; `losses` are parts of that phase, by term."""

    name: str
    device: str
    threads: int
    steps: int
    batch: int
    phases: dict[str, Times]
    losses: dict[str, Times]
    flops_per_step: int  # of convolutions and matrix products; those of an ONNX teacher are not known
    peak_flops_per_s: float  # of a matrix product, on a CPU for each second of it
    matmul_peak_share: float
    peak_memory_bytes: int  # of the process, or allocated on the GPU
    teacher_passes: int | None  # over these steps, where signals are kept
    limits: list[str] = field(default_factory=list)

    @property
    def step(self) -> Times:
        return sum(self.phases.values(), start=Times())

    def shares(self) -> dict[str, float]:
        """Of each phase in the step, by the time that counts on this device."""
        whole = max(self._counted(self.step), 1e-12)
        return {name: self._counted(times) / whole for name, times in self.phases.items()}

    def _counted(self, times: Times) -> float:
        return times.wall if self.device == "cuda" else times.cpu

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return {**plain, "step": asdict(self.step), "shares": self.shares()}

    def as_text(self) -> str:
        """For people."""
        shares = self.shares()
        lines = [
            f"{self.name}: a step of {self.batch} images on {self.device}, {self.threads} CPU threads, mean of "
            f"{self.steps} steps",
            "",
            f"{'':12}{'wall ms':>10}{'CPU ms':>10}{'share':>8}",
        ]
        for name, times in self.phases.items():
            lines.append(f"{name:12}{1e3 * times.wall:10.2f}{1e3 * times.cpu:10.2f}{shares[name]:8.1%}")
            if name == "losses" and len(self.losses) > 1:
                lines += [
                    f"  {term:10}{1e3 * part.wall:10.2f}{1e3 * part.cpu:10.2f}" for term, part in self.losses.items()
                ]
        lines += [
            f"{'step':12}{1e3 * self.step.wall:10.2f}{1e3 * self.step.cpu:10.2f}",
            "",
            f"{self.flops_per_step / 1e9:.2f} GFLOP a step: {self.matmul_peak_share:.1%} of what a matrix product does "
            f"here ({self.peak_flops_per_s / 1e9:.0f} GFLOP/s)",
            f"Peak memory {self.peak_memory_bytes / 1e6:,.0f} MB",
            "",
            *self.limits,
        ]
        return "\n".join(lines)


def profile(spec: JobSpec, steps: int = 30, *, teacher_weights: Path | None = None) -> Profile:
    """Train the spec's student for some steps and say where their time went; nothing stays on disk.

    Raises SpecError for a job that trains nothing, and what training raises.
    """
    if not spec.trains:
        raise SpecError(
            f"A job of kind {spec.kind!r} trains nothing that could be profiled.",
            field="/kind",
            hint="Give a job of kind: distill or kind: train.",
        )
    with tempfile.TemporaryDirectory(prefix="dsd-profile-") as folder:
        out = Path(folder)
        watch = _Watch(steps, spec)
        run = prepare(spec, out, _silence, watch.stop, never, teacher_weights, 0, Store(out / "signals"))
        run.spec = _only_training(spec, run.epoch_steps, WARMING + 1 + steps)
        watch.begin(run)
        with watch.running(), suppress(Interrupted):
            train_leg(run, next(leg for leg in run.legs if leg.exported), {}, {})
        return _profile_of(run, watch, _matmul_peak(run))


def _only_training(spec: JobSpec, epoch_steps: int, steps: int) -> JobSpec:
    """One student, long enough, with nothing between its steps."""
    epochs = -(-(steps + 1) // epoch_steps)
    training = spec.train.model_copy(
        update={"epochs": epochs, "log_every": 20, "norms_every": 10**9, "checkpoint_every_s": math.inf}
    )
    scoring = spec.evaluate.model_copy(update={"every_epochs": epochs + 1, "pictures": 0})
    changes = {"train": training, "evaluate": scoring, "baseline": False, "seeds": ()}
    return spec.model_copy(update=changes)


class _Watch:
    """Follows the steps of a training, which asks it after each whether to stop: some to warm up, one whose operations
    are counted, and those whose time is taken."""

    def __init__(self, steps: int, spec: JobSpec) -> None:
        self.steps = steps
        self.flops = 0
        self.done = 0
        self.whole = Times()
        self.passes_before = 0
        self._compile = spec.train.compile
        self._run: Run | None = None
        self._counting: Iterator[None] | None = None

    def begin(self, run: Run) -> None:
        self._run = run
        self.clock = Clock(run.device)

    @contextmanager
    def running(self) -> Iterator[None]:
        with clocked(self.clock):
            yield

    def stop(self) -> bool:
        if self._run is None:  # the data are being read
            return False
        self.done += 1
        if self.done == WARMING:
            self._counting = self._count()
            next(self._counting)
        elif self.done == WARMING + 1 and self._counting is not None:
            next(self._counting, None)
            self.passes_before = 0 if self._run.recall is None else self._run.recall.counts.passes
            if self._run.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._run.device)
            self.clock.restart()
        if self.done < WARMING + 1 + self.steps:
            return False
        self.whole = self.clock.whole
        return True

    def _count(self) -> Iterator[None]:
        """From here to where it goes on, count operations."""
        with eagerly(self._compile), counting() as counter:
            yield
            self.flops = int(counter.get_total_flops())


def _profile_of(run: Run, watch: _Watch, peak: float) -> Profile:
    found, steps = watch.clock.phases, watch.steps
    each = {name: Times(times.wall / steps, times.cpu / steps) for name, times in found.items()}
    losses = {name.partition("/")[2]: times for name, times in each.items() if name.startswith("losses/")}
    phases = {name: each[name] for name in PHASES if name in each}
    phases["losses"] = sum(losses.values(), start=phases["losses"])
    whole = Times(watch.whole.wall / steps, watch.whole.cpu / steps)
    phases["other"] = whole - sum(phases.values(), start=Times())
    on_gpu = run.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated(run.device) if on_gpu else 1024 * _resident_kib()
    made = Profile(
        name=run.spec.name,
        device=run.device.type,
        threads=torch.get_num_threads(),
        steps=steps,
        batch=run.spec.train.batch,
        phases={name: phases[name] for name in PHASES if name in phases},
        losses=losses,
        flops_per_step=watch.flops,
        peak_flops_per_s=peak,
        matmul_peak_share=watch.flops / (whole.wall if on_gpu else whole.cpu) / peak,
        peak_memory_bytes=memory,
        teacher_passes=None if run.recall is None else run.recall.counts.passes - watch.passes_before,
    )
    made.limits.extend(_limits(made, run))
    return made


def _resident_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limits(made: Profile, run: Run) -> list[str]:
    """What takes the most, and what would help, largest first."""
    shares = made.shares()
    student = sum(shares.get(name, 0.0) for name in ("student", "backward"))
    advice = {
        "data": f"Data-bound: loading takes {shares['data']:.0%} of a step. Raise train.loaders (now "
        f"{run.spec.train.loaders}), or give images nearer to the size that is trained on.",
        "teacher": f"Teacher-bound: it takes {shares.get('teacher', 0):.0%} of a step. {_on_teacher(made)}",
        "signals": f"Signals-bound: looking them up takes {shares.get('signals', 0):.0%} of a step. Fewer "
        "train.augment.crop pixels or top_k classes make them smaller.",
        "losses": f"Loss-bound: the losses take {shares['losses']:.0%} of a step. A larger stride, or logits_at: head, "
        "compares fewer positions.",
        "optimizer": f"Optimiser-bound: it takes {shares['optimizer']:.0%} of a step. A larger train.batch makes fewer "
        "steps of an epoch.",
        "student": f"Student-bound: its passes take {student:.0%} of a step, as they should. A smaller "
        "train.augment.crop, a lighter network, more threads, or train.compile make them faster.",
        "other": f"{shares['other']:.0%} of a step goes to what is around it. Raise train.log_every.",
    }
    weights = {**shares, "student": student}
    weights.pop("backward", None)
    ranked = sorted(weights, key=lambda name: -weights[name])
    return [advice[name] for name in ranked if weights[name] >= 0.25 or name == ranked[0]]


def _on_teacher(made: Profile) -> str:
    if made.teacher_passes is not None:
        return "Its signals are being kept in these steps; once they are there, this part is gone."
    return "Where the losses take no whole features of it, signals: auto keeps what they need, and this part goes."


def _matmul_peak(run: Run) -> float:
    """Operations per second of a large matrix product, in the type that networks compute with: the best of some."""
    precision = Precision(run.device, run.spec.train)
    side = 8192 if run.device.type == "cuda" else 1024
    dtype = precision.dtype if precision.enabled else torch.float32
    left, right = (torch.rand(side, side, device=run.device, dtype=dtype) for _ in range(2))
    clock = Clock(run.device)
    best, begun = math.inf, Times.now()
    while best == math.inf or (Times.now() - begun).wall < PEAK_S:
        clock.restart()
        left @ right
        took = clock.whole
        best = min(best, took.wall if run.device.type == "cuda" else took.cpu)
    return 2 * side**3 / best


def _silence(event: object) -> None:
    pass
