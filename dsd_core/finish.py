"""The end of a run: the student exported, what it costs and what came of it written down."""

from __future__ import annotations

from typing import get_args

from dsd_core.events import (
    Phase,
    Result,
    Score,
    SeedResult,
    StepCost,
    Subject,
)
from dsd_core.export import code_version, export_student, fixed_size_warning, measure_cost, write_result
from dsd_core.fault_points import fault_point
from dsd_core.meter import Spent
from dsd_core.models.segmenter import Segmenter
from dsd_core.run import Run
from dsd_core.run_teacher import (
    find_teacher_cost,
)
from dsd_core.spread import gain_of, over_seeds


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
    find_teacher_cost(run)
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
