"""Training: `fit(spec, out, emit)` builds everything in order, then loops. Called by `python -m dsd_core run`.

A run has up to two training phases, `baseline` (the student without a teacher) and `student`, with the same seed,
order of data and schedule, and goes through them once for each seed: a leg is a phase with a seed. All state that
changes is in the checkpoint, and all randomness of the data is a function of (seed, epoch, image), so a run that is
killed and started again ends with the same bits on the CPU (same machine, threads and processes).

Several processes may train together (`dsd_core.dist`): all go through everything here in step, and the first alone
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsd_core import checkpoint, dist
from dsd_core.data.loader import ViewSet, train_batches
from dsd_core.data.prefetch import on_device
from dsd_core.disk import storage_error
from dsd_core.environment import changes
from dsd_core.errors import Interrupted, NothingToKeepError, SpecError, StorageError
from dsd_core.events import (
    Checkpoint,
    Event,
    Picture,
    Progress,
    Result,
    Score,
    Started,
)
from dsd_core.export import code_version
from dsd_core.fault_points import fault_point
from dsd_core.finish import finish
from dsd_core.learner import Learner
from dsd_core.legs import Leg, with_seed
from dsd_core.meter import Meter, Spent, system_metrics
from dsd_core.models.compiling import eagerly
from dsd_core.models.segmenter import Segmenter
from dsd_core.optim import learning_rate, refuse_non_finite, refuse_non_finite_weights
from dsd_core.phases import each_in_phase
from dsd_core.pictures import draw_comparison
from dsd_core.prepare import prepare
from dsd_core.run import Run, build_leg, mask_of, never, pictured, score_network, warning
from dsd_core.run_teacher import (
    judge_teacher,
    teacher_mask,
)
from dsd_core.signals.opening import use_of
from dsd_core.signals.recall import Counts
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec


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


def recalled(run: Run) -> Counts:
    """What the store and the teacher gave so far, in all attempts and processes."""
    if run.recall is None:
        return run.recalled
    now, before = run.recall.counts, run.recalled
    counts = torch.tensor([now.hits, now.misses, now.passes], dtype=torch.float64)
    dist.sum_([counts])
    hits, misses, passes = map(int, counts.tolist())
    return Counts(before.hits + hits, before.misses + misses, before.passes + passes)


def load(run: Run, fence: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the newest checkpoint, both empty where there is none; sets what the run has from it.

    Raises SpecError where going on would be another run, or not the same to the bit though the spec wants that.
    """
    folder = run.out / "checkpoints"
    if dist.is_first():
        checkpoint.remove_partial(folder, fence)
    tensors, state = checkpoint.load_newest(folder, lambda text: run.emit(warning(text))) or ({}, {})
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
        run.emit(warning(f"The run goes on, but not to the bit as if uninterrupted: {'; '.join(reasons)}."))
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


def train_leg(run: Run, leg: Leg, tensors: dict[str, Tensor], state: dict[str, Any]) -> Segmenter:
    """Train one student, from the checkpoint's `tensors` and `state` or from the start (both empty); returns it in
    eval mode."""
    training = with_seed(run.spec, leg.seed).train
    learner = build_leg(run, leg)
    if state:
        learner.restore(tensors, state)
    first, steps = state.get("step", 0), run.steps
    if state.get("unscored"):
        with eagerly(training.compile):
            judge(run, leg, learner, first)
    meter = Meter(first, run.spent.get(leg.name, Spent()))
    bad = torch.zeros(len(learner.task.losses), dtype=torch.bool, device=run.device)
    views = views_of(run, leg)
    batches = train_batches(run.train_set, training, first, steps, rank=dist.rank(), of=dist.world(), views=views)

    learner.task.train()
    step = first
    for step, batch in enumerate(each_in_phase("data", on_device(batches, run.device)), start=first + 1):
        measuring = step % training.norms_every == 0 or step in (1, steps)
        logging = measuring or step % training.log_every == 0
        rate = learning_rate(training, step, steps)
        terms, norms = learner.step(batch, rate, step / steps, measure=measuring, logged=logging)
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
            with meter.paused(), saved_if_interrupted(run, leg, learner, step), eagerly(training.compile):
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
            run.emit(warning(f"No picture of step {step}: {storage_error(error, run.out / 'pictures').message}"))


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


def signal_metrics(run: Run) -> dict[str, float]:
    """What the store gave this process so far, under the names of `Progress.signals`."""
    if run.recall is None:
        return {}
    return {"hit_rate": run.recall.counts.hit_rate, "teacher_passes": float(run.recall.counts.passes)}
