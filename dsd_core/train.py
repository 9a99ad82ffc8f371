"""Training: `fit(spec, out, emit)` builds everything in order, then loops. Called by `python -m dsd_core run`.

A run has up to two training phases, `baseline` (the student without a teacher) and `student`, with the same seed,
order of data and schedule, and goes through them once for each seed: a leg is a phase with a seed. All state that
changes is in the checkpoint, and all randomness of the data is a function of (seed, epoch, image), so a run that is
killed and started again ends with the same bits on the CPU (same machine, threads and processes).

Several processes may train together (`dsd_core.dist`): all go through everything here in step, and the first alone
writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dsd_core import checkpoint, dist
from dsd_core.allocator import keep_freed_memory
from dsd_core.check import refuse_unfit_images
from dsd_core.data import Dataset, open_dataset
from dsd_core.data.loader import ViewSet, cached, steps_per_epoch, train_batches
from dsd_core.data.scan import scan
from dsd_core.disk import storage_error
from dsd_core.distill.losses import log_class_weights
from dsd_core.distill.teaching import Names
from dsd_core.environment import Environment, changes, environment
from dsd_core.errors import Interrupted, NothingToKeepError, SpecError, StorageError, WeakTeacherError
from dsd_core.evaluate import score_split
from dsd_core.events import (
    Checkpoint,
    Cost,
    Evaluated,
    Event,
    FurtherSeed,
    Note,
    Phase,
    Picture,
    Progress,
    Result,
    Score,
    SeedResult,
    SignalsUse,
    Started,
    StepCost,
    Subject,
)
from dsd_core.export import code_version, export_student, fixed_size_warning, measure_cost, write_result
from dsd_core.fault_points import fault_point
from dsd_core.inference import predictor
from dsd_core.learner import Learner, build_learner, memory_format
from dsd_core.legs import Leg, legs, losses_of, with_seed
from dsd_core.meter import Meter, Spent, system_metrics
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec
from dsd_core.optim import learning_rate, refuse_non_finite, refuse_non_finite_weights
from dsd_core.pictures import draw_comparison
from dsd_core.pulse import Pulse, read_on
from dsd_core.signals.opening import Shift, numerics, open_recall, teacher_identity, use_of
from dsd_core.signals.plan import Plan, plan_of
from dsd_core.signals.recall import Counts, Recall, scaled_size
from dsd_core.signals.scores import keep_score, known_score, score_key
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec
from dsd_core.spread import gain_of, over_seeds
from dsd_core.teacher import load_teacher


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


def fit(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    *,
    teacher_weights: Path | None = None,
    stop: Callable[[], bool] = never,
    enough: Callable[[], bool] = never,
    fence: int = 0,
    store: Store | None = None,
) -> Result | None:
    """Train the spec's student in the run folder `out`, from where its checkpoints end, and export it.

    As `train`. Of several processes only the first exports; the others return None.
    """
    run, student = train(
        spec, out, emit, teacher_weights=teacher_weights, stop=stop, enough=enough, fence=fence, store=store
    )
    return finish(run, student) if dist.is_first() else None


def train(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    *,
    teacher_weights: Path | None = None,
    stop: Callable[[], bool] = never,
    enough: Callable[[], bool] = never,
    fence: int = 0,
    store: Store | None = None,
) -> tuple[Run, Segmenter]:
    """All legs of a run: what it stands on with its scores, and the student of the first seed.

    `teacher_weights` stands in for the file of a registered teacher, `fence` tells this attempt's checkpoints from
    those of others, and `store` keeps the teacher's signals, by default in the run folder. Raises DsdError; Interrupted
    after `stop()` turned true and a checkpoint was written. After `enough()` turned true no more is trained, and the
    student is the best so far; NothingToKeepError where there is none.
    """
    run = prepare(spec, out, emit, stop, enough, teacher_weights, fence, store or Store(out / "signals"))
    tensors, state = load(run, fence)
    emit(
        Started(
            spec_digest=spec.digest(),
            code_version=code_version(),
            device=str(run.device),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            processes=dist.world(),
            total_steps=run.total_steps,
            resumed_from=state.get("total_step"),
            teacher_digest=run.teacher_digest,
            dataset_fingerprint=run.train_set.fingerprint(),
            bit_exact=run.bit_exact,
        )
    )
    if run.teacher is not None and "teacher" not in run.scores:
        judge_teacher(run)
    for leg in run.legs[state.get("leg", 0) :]:
        resuming = leg.place == state.get("leg")
        if not resuming and any(dist.largest(run.enough())):
            end_early(run, leg, 0)
            break
        student = train_leg(run, leg, tensors if resuming else {}, state if resuming else {})
        if leg.exported:
            run.kept = {key: value.detach().cpu().clone() for key, value in student.state_dict().items()}
        if run.stopped_step is not None:
            drop_unfinished(run, leg)
            break
    student.load_state_dict(run.kept)
    counts = recalled(run)
    run.signals = None if run.recall is None else use_of(run.recall, spec, counts)
    return run, student


def drop_unfinished(run: Run, leg: Leg) -> None:
    """A further seed that was stopped early enters no mean: its student is not what that seed comes to."""
    if not leg.exported:
        run.scores.pop(leg.name, None)


def prepare(
    spec: JobSpec,
    out: Path,
    emit: Callable[[Event], None],
    stop: Callable[[], bool],
    enough: Callable[[], bool],
    teacher_weights: Path | None,
    fence: int,
    store: Store,
) -> Run:
    """Step 0: read all data once, load the teacher and build a student, so that what cannot work fails within
    seconds."""
    keep_freed_memory()
    torch.set_num_threads(spec.train.threads or max(1, (os.cpu_count() or 1) // dist.world()))
    torch.backends.cudnn.benchmark = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, pulse = spec.dataset, Pulse(out / "pulse") if dist.is_first() else _silence
    train_set = cached(open_dataset(data.name, data.root, "train", data.size))
    val_set = cached(open_dataset(data.name, data.root, "val", data.size))
    tell = partial(read_on, pulse, stop)
    scanned = scan(train_set, tell=tell)
    refuse_unfit_images(spec, train_set, scanned)
    scan(val_set, tell=tell)
    weights = None
    if any(loss.needs_class_shares for loss in spec.losses):
        weights = log_class_weights(torch.tensor(scanned.class_shares, dtype=torch.float32))
    writer = checkpoint.Writer(
        out / "checkpoints",
        every_s=spec.train.checkpoint_every_s,
        kept=spec.train.checkpoints_kept,
        fence=fence,
        warn=lambda text: emit(_warning(text)),
    )
    run = Run(
        spec, out, emit, stop, enough, pulse, writer, store, device, environment(device), train_set, val_set, weights
    )
    plan = plan_of(spec)
    if spec.teacher is not None:
        wake = partial(loaded_teacher, run, teacher_weights)
        run.teacher = Frozen(wake())
        plan = plan if plan is None else plan_that_fits(run, plan)
    # Names of taps and shapes of weights are proved before anything is trained.
    learner = build_leg(run, next(leg for leg in run.legs if leg.exported))
    learner.task.close()
    if plan is not None:
        run.recall = recall_signals(run, plan, learner.task.teacher_layers, wake)
    refuse_too_many_processes(spec)
    if spec.train.batch // dist.world() // spec.train.accumulate == 1:
        refuse_single_images(learner.student, spec.train.augment.crop or train_set.size)
    if learner.started_from is not None:
        emit(Note(message=f"The student starts from {learner.started_from}"))
    return run


def loaded_teacher(run: Run, weights: Path | None) -> Segmenter:
    """The teacher on the device; sets what the run says of it."""
    assert run.spec.teacher is not None
    sizes = (run.spec.train.augment.crop or run.train_set.size, run.val_set.size)
    segmenter, run.teacher_network, run.teacher_digest = load_teacher(
        run.spec.teacher, run.classes, weights, sizes=sizes
    )
    return segmenter.to(run.device).to(memory_format=memory_format(run.spec))


def plan_that_fits(run: Run, plan: Plan) -> Plan | None:
    """None where the teacher takes no whole images and the spec leaves the choice; else SpecError."""
    assert run.teacher is not None
    refuse = getattr(run.teacher.network, "refuse_other_size", None)
    if refuse is None or plan.kind == "view":
        return plan
    sizes = {run.train_set.size_of(index) for index in range(len(run.train_set))}
    try:
        for size, scale in product(sizes, plan.scales):
            refuse(scaled_size(size, scale))
    except SpecError as error:
        if run.spec.signals != "auto":
            raise
        run.emit(Note(message=f"The teacher stays in the loop. {error.message}"))
        return None
    return plan


def recall_signals(run: Run, plan: Plan, layers: Names, load: Callable[[], torch.nn.Module]) -> Recall:
    """The teacher's signals of the training images, for all legs with a teacher."""
    assert run.teacher is not None and run.teacher_digest is not None

    def tell(text: str, is_warning: bool) -> None:
        if is_warning or dist.is_first():
            run.emit(_warning(text) if is_warning else Note(message=text))

    return open_recall(
        plan,
        run.spec,
        run.train_set,
        Shift(run.teacher, layers, load, partial(remember_teacher, run)),
        run.store,
        teacher_digest=run.teacher_digest,
        network=run.teacher_network,
        device=run.device,
        tell=tell,
    )


def remember_teacher(run: Run) -> None:
    """Find out what the end of the run will say of the teacher, which is about to leave memory."""
    if not dist.is_first():
        return
    assert run.teacher is not None
    if run.teacher_network is not None:
        run.teacher_cost = measure_cost(run.teacher, run.teacher_network, len(run.classes), run.val_set.size)
        run.teacher.to(run.device)
    for index in pictured(run):
        teacher_mask(run, index)


def recalled(run: Run) -> Counts:
    """What the store and the teacher gave so far, in all attempts and processes."""
    if run.recall is None:
        return run.recalled
    now, before = run.recall.counts, run.recalled
    counts = torch.tensor([now.hits, now.misses, now.passes], dtype=torch.float64)
    dist.sum_([counts])
    hits, misses, passes = map(int, counts.tolist())
    return Counts(before.hits + hits, before.misses + misses, before.passes + passes)


def _silence() -> None:
    pass


def refuse_too_many_processes(spec: JobSpec) -> None:
    if spec.train.batch < dist.world() * spec.train.accumulate:
        parts = f", each in {spec.train.accumulate} parts," if spec.train.accumulate > 1 else ""
        raise SpecError(
            f"{dist.world()} processes{parts} cannot share batches of {spec.train.batch}.",
            field="/train/batch",
            hint="Give each part at least one image, better two: batch normalisation sees only that part.",
        )


def refuse_single_images(student: Segmenter, size: tuple[int, int]) -> None:
    """Raise SpecError where the student cannot train on one image at a time: batch normalisation of pooled features
    needs more than one value a channel. Alters the student's running statistics."""
    device = next(student.parameters()).device
    try:
        student.train()(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    except ValueError as error:
        raise SpecError(
            f"This network cannot train on one image at a time: {error}.",
            field="/train/batch",
            hint="Set train.batch to 2 or more; it normalises features that are pooled to one value an image.",
        ) from error


def load(run: Run, fence: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the newest checkpoint, both empty where there is none; sets what the run has from it.

    Raises SpecError where going on would be another run, or not the same to the bit though the spec wants that.
    """
    folder = run.out / "checkpoints"
    if dist.is_first():
        checkpoint.remove_partial(folder, fence)
    tensors, state = checkpoint.load_newest(folder, lambda text: run.emit(_warning(text))) or ({}, {})
    step = state.get("total_step", 0)
    if dist.largest(step, -step) != [step, -step]:
        raise StorageError(f"The processes of this run do not read the same newest checkpoint in {folder}.")
    refuse_other_run(run, state)
    refuse_other_bits(run, state)
    run.scores = {subject: Score(**score) for subject, score in state.get("scores", {}).items()}
    run.spent = {leg: Spent(**spent) for leg, spent in state.get("spent", {}).items()}
    run.recalled = Counts(**state.get("recalled", {}))
    run.kept = checkpoint.stripped("kept", tensors)
    return tensors, state


def refuse_other_bits(run: Run, state: dict[str, Any]) -> None:
    """Where a resumed run will not end with the bits of an uninterrupted one: say so, or raise SpecError where the
    spec wants them."""
    if not state:
        return
    reasons = changes(state.get("environment"), run.environment)
    if not run.environment["deterministic"]:
        reasons.append(f"{run.device.type} does not repeat a computation to the bit")
    if reasons and run.spec.train.resume == "strict":
        raise SpecError(
            f"The run would not end with the bits of an uninterrupted one: {'; '.join(reasons)}.",
            field="/train/resume",
            hint="Start it again where it was, or start a new job with train.resume: allow.",
        )
    if reasons:
        run.emit(_warning(f"The run goes on, but not to the bit as if uninterrupted: {'; '.join(reasons)}."))
    run.bit_exact = not reasons and state["bit_exact"]


def refuse_other_run(run: Run, state: dict[str, Any]) -> None:
    """Raise SpecError where the checkpoint is of another training or another teacher: going on would be neither run."""
    ours = {"training_digest": run.spec.training_digest(), "teacher_digest": run.teacher_digest}
    changed = [name.removesuffix("_digest") for name, digest in ours.items() if state and state.get(name) != digest]
    if changed:
        raise SpecError(
            f"The run folder {run.out} holds a checkpoint of another {' and another '.join(changed)}.",
            hint="Give a new folder, or remove this one to start again.",
        )


def build_leg(run: Run, leg: Leg) -> Learner:
    spec, teacher = with_seed(run.spec, leg.seed), run.teacher if leg.phase == "student" else None
    recall = run.recall if leg.phase == "student" else None
    losses = losses_of(spec, leg.phase)
    return build_learner(spec, losses, teacher, len(run.classes), run.device, run.class_weights, recall)


def judge_teacher(run: Run) -> None:
    """Score the teacher on the validation split, where that has labels; raises WeakTeacherError below its floor."""
    assert run.teacher is not None and run.spec.teacher is not None
    if not run.val_set.labelled:
        run.emit(_warning("The validation images have no labels: the teacher was not held against its floor."))
        return
    key = teacher_score_key(run)
    known = known_score(run.store.folder, key)
    if any(dist.largest(known is None)) or known is None:
        run.scores["teacher"] = score_network(run, run.teacher, "teacher", 0, 0)
        keep_score(run.store.folder, key, run.scores["teacher"])
    else:
        run.scores["teacher"] = known
        images = len(run.val_set)
        run.emit(Evaluated(subject="teacher", step=0, total_step=0, images=images, seconds=0.0, **known.model_dump()))
    miou = run.scores["teacher"].miou or 0.0
    if miou < run.spec.teacher.floor:
        raise WeakTeacherError(
            f"The teacher's mIoU on the validation split is {miou:.4f}, below the floor {run.spec.teacher.floor}.",
            field="/teacher/preprocess",
            hint="Its preprocessing is the commonest cause: check order (RGB or BGR), mean and std on the 0..255 scale,"
            " the image size, and that it knows these classes in this order. To train with it all the same, lower"
            " /teacher/floor.",
        )


def teacher_score_key(run: Run) -> str:
    assert run.teacher is not None and run.teacher_digest is not None
    return score_key(
        teacher_identity(run.teacher, run.teacher_digest, run.teacher_network),
        f"{run.val_set.fingerprint()} {run.spec.dataset.size}",
        run.spec.evaluate.model_dump(mode="json"),
        numerics(run.device, run.spec),
    )


def train_leg(run: Run, leg: Leg, tensors: dict[str, Tensor], state: dict[str, Any]) -> Segmenter:
    """Train one student, from the checkpoint's `tensors` and `state` or from the start (both empty); returns it in
    eval mode."""
    training = with_seed(run.spec, leg.seed).train
    learner = build_leg(run, leg)
    if state:
        learner.restore(tensors, state)
    first, steps = state.get("step", 0), run.steps
    if state.get("unscored"):
        judge(run, leg, learner, first)
    meter = Meter(first, run.spent.get(leg.name, Spent()))
    bad = torch.zeros(len(learner.task.losses), dtype=torch.bool, device=run.device)
    views = views_of(run, leg)
    batches = train_batches(run.train_set, training, first, steps, rank=dist.rank(), of=dist.world(), views=views)

    learner.task.train()
    step = first
    for step, batch in enumerate(batches, start=first + 1):
        measuring = step % training.norms_every == 0 or step in (1, steps)
        logging = measuring or step % training.log_every == 0
        rate = learning_rate(training, step, steps)
        terms, norms = learner.step(batch.to(run.device), rate, step / steps, measure=measuring, logged=logging)
        bad |= torch.stack([~terms[loss.term].isfinite() for loss in learner.task.losses])
        meter.count_step(training.batch)
        run.pulse()
        fault_point("train.after_step")

        # Signals and clocks differ between processes: what any of them wants, all do at this step.
        wishes = run.stop(), run.enough(), dist.is_first() and run.writer.is_due()
        stopping, ending, due = map(bool, dist.largest(*wishes))
        saving = stopping or due or step == steps
        judging = ending or step == steps or step % (run.spec.evaluate.every_epochs * run.epoch_steps) == 0
        if logging or saving or judging:
            refuse_non_finite(learner.task.losses, bad, leg.phase, step)
        if saving or judging:
            refuse_non_finite_weights(learner.student, leg.phase, step)
        if logging:
            images_per_s, eta_s = meter.rates(step, steps)
            run.emit(
                Progress(
                    phase=leg.phase,
                    seed=leg.event_seed,
                    step=step,
                    steps=steps,
                    total_step=run.total_step(leg, step),
                    total_steps=run.total_steps,
                    epoch=(step - 1) // run.epoch_steps + 1,
                    losses={name: value.item() for name, value in terms.items()},
                    grad_norms={name: value.item() for name, value in norms.items()},
                    learning_rate=rate,
                    images_per_s=images_per_s,
                    eta_s=eta_s,
                    signals=signal_metrics(run) if leg.phase == "student" else {},
                    system=system_metrics(run.device),
                )
            )
        run.spent[leg.name] = meter.spent
        if stopping:
            save(run, leg, learner, step, unscored=judging, needed=True)
            raise Interrupted(f"Stopped after step {step} of {leg.name}; the checkpoint holds it.")
        if ending:
            end_early(run, leg, step)
        if judging and (leg.exported or not ending):
            with meter.paused(), saved_if_interrupted(run, leg, learner, step):
                judge(run, leg, learner, step)
            learner.task.train()
        if ending:
            break
        if saving:
            save(run, leg, learner, step)

    learner.task.close()
    student = learner.shown
    if learner.best and (training.keep == "best" or run.stopped_step is not None):
        student.load_state_dict(learner.best)
        run.scores[leg.name] = score_leg(run, leg, student, step)
    return student.eval()


def views_of(run: Run, leg: Leg) -> ViewSet | None:
    """The views a leg sees again and again; None: fresh ones, as the baseline always does."""
    if run.recall is None or run.recall.plan.kind == "image" or leg.phase == "baseline":
        return None
    return ViewSet(run.recall.plan.views, run.recall.plan.view_seed)


def end_early(run: Run, leg: Leg, step: int) -> None:
    """Note that nothing is trained after this step of a leg. Raises NothingToKeepError where no student would be
    left."""
    if not (run.kept or (leg.exported and step)):
        raise NothingToKeepError(
            f"The run was stopped after {run.total_step(leg, step)} steps, before its student had been trained.",
            hint="Cancel such a job; or let it go on until its student has been trained for a while.",
        )
    run.stopped_step = run.total_step(leg, step)


def judge(run: Run, leg: Leg, learner: Learner, step: int) -> None:
    """Score the leg's student as it is, remember it where it is the best so far, and draw what it sees."""
    run.scores[leg.name] = score_leg(run, leg, learner.shown, step)
    if leg.exported or run.spec.train.keep == "best":
        learner.keep_if_best(run.scores[leg.name].miou)
    if leg.phase == "student" and dist.is_first():
        try:
            draw_pictures(run, leg, learner.shown, step)
        except OSError as error:
            run.emit(_warning(f"No picture of step {step}: {storage_error(error, run.out / 'pictures').message}"))


@contextmanager
def saved_if_interrupted(run: Run, leg: Leg, learner: Learner, step: int) -> Iterator[None]:
    """Scoring may take longer than a process that is to stop has left."""
    try:
        yield
    except Interrupted:
        save(run, leg, learner, step, unscored=True, needed=True)
        raise


def save(run: Run, leg: Leg, learner: Learner, step: int, *, unscored: bool = False, needed: bool = False) -> None:
    """Write a checkpoint and say so. `unscored`: this step was to be scored, and was not. Raises StorageError where it
    cannot be written and is `needed`, or the one before could not either."""
    total_step = run.total_step(leg, step)
    position = {"leg": leg.place, "step": step, "total_step": total_step, "unscored": unscored}
    figures = {
        "recalled": asdict(recalled(run)),
        "scores": {subject: score.model_dump() for subject, score in run.scores.items()},
        "spent": {name: asdict(spent) for name, spent in run.spent.items()},
    }
    lineage = {
        "training_digest": run.spec.training_digest(),
        "teacher_digest": run.teacher_digest,
        "environment": run.environment,
        "bit_exact": run.bit_exact,
    }
    tensors = learner.tensors() | {f"kept.{key}": value for key, value in run.kept.items()}
    if dist.is_first():
        state = {**position, **learner.state(), **lineage, **figures}
        saved = run.writer.write(total_step, tensors, state, needed=needed)
        if saved is not None:
            run.emit(
                Checkpoint(
                    phase=leg.phase,
                    seed=leg.event_seed,
                    step=step,
                    total_step=total_step,
                    path=str(saved.path.relative_to(run.out)),
                    bytes=saved.bytes,
                    sha256=saved.sha256,
                )
            )
    dist.wait()  # or torchrun, seeing the others end, would end the one that still writes


def score_leg(run: Run, leg: Leg, student: Segmenter, step: int) -> Score:
    return score_network(run, student, leg.phase, step, run.total_step(leg, step), leg.event_seed)


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


def draw_pictures(run: Run, leg: Leg, student: Segmenter, step: int) -> None:
    """Draw the first validation images with the masks that are scored."""
    total_step = run.total_step(leg, step)
    for index in pictured(run):
        image_HW3, label_HW = run.val_set[index]
        masks = {} if run.teacher is None else {"teacher": teacher_mask(run, index)}
        masks["student"] = mask_of(run, student, index)
        path = Path("pictures") / f"{total_step:08d}-{index:02d}.png"
        draw_comparison(run.out / path, image_HW3, label_HW, masks, run.val_set.palette)
        caption = f"validation image {run.val_set.names[index]}"
        run.emit(
            Picture(
                phase=leg.phase,
                seed=leg.event_seed,
                step=step,
                total_step=total_step,
                path=str(path),
                caption=caption,
            )
        )


def pictured(run: Run) -> range:
    """Validation images that are drawn."""
    return range(min(run.spec.evaluate.pictures, len(run.val_set)))


def teacher_mask(run: Run, index: int) -> np.ndarray:
    """What the teacher makes of a validation image; it sees each once."""
    if index not in run.teacher_masks:
        assert run.teacher is not None
        run.teacher_masks[index] = mask_of(run, run.teacher, index).astype(np.uint8)
    return run.teacher_masks[index]


def mask_of(run: Run, network: torch.nn.Module, index: int) -> np.ndarray:
    """The class of each pixel of a validation image."""
    image_HW3, _ = run.val_set[index]
    image_N3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).unsqueeze(0).to(run.device)
    with torch.inference_mode():
        mask: np.ndarray = predictor(network, run.spec.evaluate)(image_N3HW).argmax(1)[0].cpu().numpy()
    return mask


def signal_metrics(run: Run) -> dict[str, float]:
    """What the store gave this process so far, under the names of `Progress.signals`."""
    if run.recall is None:
        return {}
    return {"hit_rate": run.recall.counts.hit_rate, "teacher_passes": float(run.recall.counts.passes)}


def finish(run: Run, student: Segmenter) -> Result:
    """Export the student, measure what it costs, write result.json."""
    spec, classes, size = run.spec, len(run.classes), run.val_set.size
    network, preprocess = spec.student.architecture
    seeds = seed_results(run)
    lineage = {
        "teacher_digest": run.teacher_digest,
        "dataset_fingerprint": run.train_set.fingerprint(),
        "spec_digest": spec.digest(),
        "code_version": code_version(),
    }
    run.pulse()
    fault_point("export.before")
    subjects = [subject for subject in get_args(Subject) if subject in run.scores]
    exported = export_student(
        student,
        network,
        preprocess,
        run.out / "student",
        classes=run.classes,
        palette=run.val_set.palette,
        size=size,
        options=spec.export,
        about={
            "name": spec.name,
            "dataset": spec.dataset.name,
            "scores": {subject: run.scores[subject].model_dump() for subject in subjects},
            "seeds": [result.model_dump() for result in seeds],
            **lineage,
        },
    )
    fault_point("export.after")
    run.pulse()
    if exported.fixed_size:
        run.emit(fixed_size_warning(size))
    if run.teacher is not None and run.teacher_network is not None and run.teacher_cost is None:
        run.teacher_cost = measure_cost(run.teacher, run.teacher_network, classes, size)
    first = seeds[0]
    result = Result(
        student=first.student,
        student_cost=measure_cost(student, network, classes, size),
        teacher=run.scores.get("teacher"),
        teacher_cost=run.teacher_cost,
        baseline=first.baseline,
        gain=first.gain,
        seeds=seeds,
        **over_seeds(seeds),
        step_cost=step_cost(run, "student"),
        baseline_step_cost=step_cost(run, "baseline") if spec.baseline else None,
        signals=run.signals,
        files=exported.files,
        classes=list(run.classes),
        onnx_max_error=exported.onnx_max_error,
        train_seconds=sum(spent.seconds for spent in run.spent.values()),
        bit_exact=run.bit_exact,
        stopped_early=run.stopped_step is not None,
        stopped_step=run.stopped_step,
        floor=spec.evaluate.floor,
        beats_floor=first.student.miou is not None and first.student.miou >= spec.evaluate.floor,
        **lineage,
    )
    write_result(run.out, result)
    return result


def seed_results(run: Run) -> list[SeedResult]:
    """What each seed came to, in the order of training; those without a student are left out."""
    found: dict[int, dict[str, Score]] = {}
    for leg in run.legs:
        if leg.name in run.scores:
            found.setdefault(leg.seed, {})[leg.phase] = run.scores[leg.name]
    whole = {seed: scores for seed, scores in found.items() if "student" in scores}
    return [SeedResult(seed=seed, gain=gain_of(**scores), **scores) for seed, scores in whole.items()]


def step_cost(run: Run, phase: Phase) -> StepCost:
    """The mean over the steps of all legs of this phase."""
    spent = [run.spent[leg.name] for leg in run.legs if leg.phase == phase and leg.name in run.spent]
    whole = sum(spent, start=Spent())
    return StepCost(
        steps=whole.steps,
        seconds_per_step=whole.seconds / whole.steps,
        cpu_seconds_per_step=whole.cpu_seconds / whole.steps,
        device=run.device.type,
    )


def _warning(text: str) -> Note:
    return Note(level="warning", message=text)
