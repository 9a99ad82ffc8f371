"""Training does what the spec says, ends with the same bits however often it is interrupted, and leaves a student
that works."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dsd_core.data import open_dataset
from dsd_core.data.loader import eval_batches, train_batches
from dsd_core.distill.presets import PRESETS
from dsd_core.errors import DivergedError, Interrupted, SpecError, WeakTeacherError, WeightsError
from dsd_core.evaluate import evaluate
from dsd_core.events import Checkpoint, Evaluated, Note, Picture, Progress, Started
from dsd_core.finish import seed_results
from dsd_core.learner import build_learner
from dsd_core.models import build
from dsd_core.models.frozen import Frozen
from dsd_core.models.onnx_session import onnx_session
from dsd_core.optim import learning_rate
from dsd_core.spec import Training
from dsd_core.teacher import load_teacher
from dsd_core.train import fit, train
from tests.core import layouts
from tests.core.small import CLASSES, WITHOUT_BATCH_NORM, save_teacher, small_spec

GOLDEN = [
    {"ce": 2.42, "psd": 1.542, "csd": 0.0018, "kd": 0.0183, "loss": 7.1539},
    {"ce": 2.3667, "psd": 0.7052, "csd": 0.0006, "kd": 0.0119, "loss": 4.5358},
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    """A job with a baseline, run through: its result, folder and events."""
    out = tmp_path_factory.mktemp("finished")
    events = []
    result = fit(small_spec(teacher, baseline=True), out, events.append)
    return result, out, events


def progress(events, phase):
    return [event for event in events if isinstance(event, Progress) and event.phase == phase]


def learner_of(spec):
    return build_learner(spec, spec.losses, Frozen(load_teacher(spec.teacher, CLASSES)[0]), len(CLASSES), CPU, None)


def weights_of(out):
    return load_file(out / "student" / "model.safetensors")


def test_the_first_losses_are_these_numbers(finished):
    _, _, events = finished
    losses = [event.losses for event in progress(events, "student")]
    assert len(losses) == 6
    for found, expected in zip(losses, GOLDEN, strict=False):
        assert found == pytest.approx(expected, abs=2e-3)


def test_baseline_and_student_start_from_the_same_weights_and_see_the_same_images(finished):
    _, _, events = finished
    first = {phase: progress(events, phase)[0] for phase in ("baseline", "student")}
    assert first["baseline"].losses["ce"] == first["student"].losses["ce"]
    assert set(first["baseline"].losses) == {"ce", "loss"}
    assert set(first["student"].losses) == {"ce", "psd", "csd", "kd", "loss"}


def test_the_loss_is_the_weighted_sum_and_every_term_reports_its_gradient(finished, teacher):
    _, _, events = finished
    weights = {loss.term: loss.weight for loss in small_spec(teacher).losses}
    for event in progress(events, "student"):
        total = sum(weight * event.losses[name] for name, weight in weights.items())
        assert event.losses["loss"] == pytest.approx(total, rel=1e-5)
        assert set(event.grad_norms) == {*weights, "total"}
        assert all(norm > 0 for norm in event.grad_norms.values())


def test_the_events_tell_the_whole_run_in_order(finished):
    _, out, events = finished
    kinds = [type(event) for event in events]
    assert kinds[0] is Started and events[0].total_steps == 12 and events[0].resumed_from is None
    subjects = [event.subject for event in events if isinstance(event, Evaluated)]
    assert subjects == ["teacher", "baseline", "student"]
    assert [event.total_step for event in events if isinstance(event, Progress)] == list(range(1, 13))
    assert [event.total_step for event in events if isinstance(event, Checkpoint)] == [6, 12]
    assert all((out / event.path).is_file() for event in events if isinstance(event, Picture))
    assert not [event for event in events if isinstance(event, Note) and event.level == "warning"]


def test_the_result_reports_the_gain_over_the_baseline(finished):
    result, out, _ = finished
    assert result.gain == pytest.approx(result.student.miou - result.baseline.miou)
    assert result.teacher.miou is not None
    assert json.loads((out / "result.json").read_text())["gain"] == pytest.approx(result.gain)
    assert 0 < result.student_cost.params < 354_517 and result.student_cost.flops > 0
    assert result.teacher_cost.network == "espnet"
    assert result.teacher_digest and result.dataset_fingerprint and result.spec_digest


def test_the_exported_weights_are_the_networks_own_and_nothing_else(finished):
    _, out, _ = finished
    tensors = weights_of(out)
    network = build(small_spec().student.network, len(CLASSES))
    assert set(tensors) == set(network.state_dict())
    network.load_state_dict(tensors, strict=True)


def test_the_exported_graph_scores_what_the_student_scored(finished):
    result, out, _ = finished
    session = onnx_session(out / "student" / "model.onnx")

    def logits(images):
        return torch.from_numpy(session.run(["logits"], {"image": images.permute(0, 2, 3, 1).contiguous().numpy()})[0])

    data = open_dataset("streets", None, "val", (32, 48))
    score, images, _ = evaluate(logits, eval_batches(data, 20), data.classes)
    assert images == len(data)
    assert score.miou == pytest.approx(result.student.miou, abs=2e-4)
    assert result.onnx_max_error < 1e-4


def test_the_exported_graph_takes_any_batch_and_size(finished):
    _, out, _ = finished
    session = onnx_session(out / "student" / "model.onnx")
    for shape in ((1, 32, 48, 3), (3, 41, 67, 3)):
        found = session.run(["logits"], {"image": np.zeros(shape, dtype=np.uint8)})[0]
        assert found.shape == (shape[0], len(CLASSES), shape[1], shape[2])


def test_the_checksums_match_the_files(finished):
    import hashlib

    result, out, _ = finished
    lines = (out / "student" / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {"model.safetensors", "config.json", "model.onnx", "README.md"}
    for file in result.files:
        data = (out / "student" / file.path).read_bytes()
        assert len(data) == file.bytes and hashlib.sha256(data).hexdigest() == file.sha256


MORE_STOPS = ([6], [8], [2, 5, 9, 11])


@pytest.mark.parametrize("stop_at", [[3], *(pytest.param(steps, marks=pytest.mark.slow) for steps in MORE_STOPS)])
def test_an_interrupted_run_ends_with_the_very_same_weights(stop_at, finished, teacher, tmp_path):
    _, uninterrupted, _ = finished
    spec = small_spec(teacher, baseline=True)
    interrupted = 0
    for limit in [*stop_at, 99]:
        events = []

        def stop(events=events, limit=limit):
            done = [e.total_step for e in events if isinstance(e, Progress)]
            return len(done) > 0 and done[-1] >= limit - 1

        try:
            _, student = train(spec, tmp_path, events.append, stop=stop)
        except Interrupted:
            interrupted += 1
        started = next(event for event in events if isinstance(event, Started))
        assert (started.resumed_from is None) == (limit == stop_at[0])
    assert interrupted >= len([step for step in stop_at if step != 6])
    expected = weights_of(uninterrupted)
    assert all(torch.equal(value, expected[key]) for key, value in student.network.state_dict().items())


def newest_checkpoint(out):
    return max((out / "checkpoints").iterdir())


def position_of(out):
    return json.loads((newest_checkpoint(out) / "state.json").read_text())


def kd_spec(teacher, **changes):
    """Two steps a leg with the cheapest loss that needs a teacher."""
    return small_spec(teacher, losses="kd", train__batch=120, **changes)


@pytest.fixture(scope="module")
def two_seeds(teacher, tmp_path_factory):
    """A job with a baseline and the seeds 3 and 1, two steps a leg, run through: its result, folder and events."""
    out = tmp_path_factory.mktemp("two_seeds")
    events = []
    return fit(kd_spec(teacher, baseline=True, seeds=[3, 1]), out, events.append), out, events


def test_each_seed_trains_baseline_then_student_and_counts_steps_over_all_of_them(two_seeds):
    _, _, events = two_seeds
    scored = [(event.subject, event.seed) for event in events if isinstance(event, Evaluated)]
    assert scored == [("teacher", None), ("baseline", None), ("student", None), ("baseline", 1), ("student", 1)]
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.total_step for event in steps] == list(range(1, 9))
    assert {event.total_steps for event in steps} == {8}
    assert [event.seed for event in events if isinstance(event, Checkpoint)] == [None, None, 1, 1]
    assert {event.seed for event in events if isinstance(event, Picture)} == {None, 1}


@pytest.mark.slow
def test_a_seed_of_several_trains_as_it_does_alone(two_seeds, teacher, tmp_path):
    result, out, _ = two_seeds
    alone = {}
    for seed in (3, 1):
        run, student = train(kd_spec(teacher, train__seed=seed), tmp_path / str(seed), lambda event: None)
        alone[seed] = student.network.state_dict()
        found = next(found for found in result.seeds if found.seed == seed)
        assert found.student == run.scores["student"]
    exported = weights_of(out)
    assert all(torch.equal(value, exported[key]) for key, value in alone[3].items())
    assert not all(torch.equal(value, exported[key]) for key, value in alone[1].items())


def test_the_result_reports_every_seed_and_their_mean_and_spread(two_seeds):
    result, out, _ = two_seeds
    assert [found.seed for found in result.seeds] == [3, 1]
    assert (result.student, result.baseline) == (result.seeds[0].student, result.seeds[0].baseline)
    assert result.gain == result.seeds[0].gain
    students, gains = [found.student.miou for found in result.seeds], [found.gain for found in result.seeds]
    assert result.miou_mean == pytest.approx(np.mean(students))
    assert result.miou_spread == pytest.approx(np.std(students, ddof=1)) and result.miou_spread > 0
    assert result.gain_mean == pytest.approx(np.mean(gains))
    assert result.gain_mean == pytest.approx(result.miou_mean - result.baseline_mean)
    assert result.gain_spread == pytest.approx(np.std(gains, ddof=1))
    card = (out / "student" / "README.md").read_text()
    assert "seeds 3, 1" in card and "This model is of seed 3" in card


def test_a_single_seed_has_a_mean_and_no_spread(finished):
    result, out, _ = finished
    assert [found.seed for found in result.seeds] == [0] and result.miou_mean == result.student.miou
    assert (result.miou_spread, result.baseline_spread, result.gain_spread) == (None, None, None)
    assert "seeds" not in (out / "student" / "README.md").read_text()


def test_the_result_says_what_a_step_takes_without_scoring(two_seeds):
    result, _, _ = two_seeds
    scoring_s = sum(event.seconds for event in two_seeds[2] if isinstance(event, Evaluated))
    for cost in (result.step_cost, result.baseline_step_cost):
        assert cost.steps == 4 and cost.device == "cpu"
        assert 0 < cost.cpu_seconds_per_step
    spent = 4 * (result.step_cost.seconds_per_step + result.baseline_step_cost.seconds_per_step)
    assert spent == pytest.approx(result.train_seconds)
    began, ended = (datetime.fromisoformat(event.at) for event in (two_seeds[2][0], two_seeds[2][-1]))
    assert spent + scoring_s <= (ended - began).total_seconds() + 0.1


def at_first_step(total_step, events):
    """A wish to stop that comes during this step, the first of a leg, and not while something is scored."""
    steps = [event.total_step for event in events if isinstance(event, Progress)]
    told = events[-1] if events else None
    return not isinstance(told, Started | Progress | None) and (steps or [0])[-1] == total_step - 1


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [[7], [1, 5, 7]])
def test_a_run_of_several_seeds_that_is_interrupted_ends_with_the_very_same_bits(stop_at, two_seeds, teacher, tmp_path):
    result, uninterrupted, _ = two_seeds
    spec, spent_s = kd_spec(teacher, baseline=True, seeds=[3, 1]), 0.0
    events = []
    for limit in stop_at:
        with pytest.raises(Interrupted):
            train(spec, tmp_path, events.append, stop=partial(at_first_step, limit, events))
        assert position_of(tmp_path)["total_step"] == limit
        before_s, spent_s = spent_s, sum(spent["seconds"] for spent in position_of(tmp_path)["spent"].values())
        assert spent_s > before_s
        if limit == 5:  # as if killed when the checkpoint between the seeds had just been written
            shutil.rmtree(newest_checkpoint(tmp_path))
    run, student = train(spec, tmp_path, lambda event: None)
    exported = weights_of(uninterrupted)
    assert all(torch.equal(value, exported[key]) for key, value in student.network.state_dict().items())
    expected, found = [load_file(newest_checkpoint(out) / "tensors.safetensors") for out in (uninterrupted, tmp_path)]
    assert set(found) == set(expected) and all(torch.equal(found[key], value) for key, value in expected.items())
    assert seed_results(run) == result.seeds


@pytest.mark.parametrize(
    ("seeds", "said"), [([1, 2, 1], "1 stands more often"), (list(range(33)), "at most 32"), ([-1], "0")]
)
def test_seeds_that_make_no_sense_are_refused(seeds, said):
    with pytest.raises(SpecError, match=said) as caught:
        small_spec(None, seeds=seeds)
    assert caught.value.field.startswith("/seeds")


@pytest.mark.parametrize("left_out", ["student.", "optimizer.", "average.", "random.", "schedule", "data"])
def test_the_comparison_of_resumed_runs_notices_a_part_that_was_not_restored(left_out, teacher):
    network = {**WITHOUT_BATCH_NORM, "options": {**WITHOUT_BATCH_NORM["options"], "decoder_dropout": 0.5}}
    spec = small_spec(teacher, student__network=network, losses="kd", train__ema=0.9, train__batch=4)
    batches = list(train_batches(open_dataset("streets", None, "train", (32, 48)), spec.train, 0, 4))

    def step(learner, step, seen):
        learner.step(batches[seen - 1], learning_rate(spec.train, step, 4), 1.0, measure=False)
        return [*learner.shown.state_dict().values(), *learner.student.state_dict().values()]

    learner = learner_of(spec)
    learner.task.train()
    for place in (1, 2, 3):
        step(learner, place, place)
    tensors, state = {key: value.clone() for key, value in learner.tensors().items()}, learner.state()
    expected = step(learner, 4, 4)

    def resumed(left_out):
        other = learner_of(spec)
        other.task.train()
        restored = {key: value for key, value in tensors.items() if not key.startswith(left_out)}
        other.restore({**other.tensors(), **restored}, state)
        return step(other, 1 if left_out == "schedule" else 4, 1 if left_out == "data" else 4)

    assert all(torch.equal(a, b) for a, b in zip(resumed("nothing"), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(resumed(left_out), expected, strict=True))


@pytest.mark.slow
def test_a_folder_of_another_spec_or_teacher_is_not_resumed(teacher, tmp_path):
    spec = small_spec(teacher, train__batch=120)
    train(spec, tmp_path, lambda event: None)
    with pytest.raises(SpecError, match="holds a checkpoint of another training"):
        train(small_spec(teacher, train__batch=120, train__seed=1), tmp_path, lambda event: None)
    other = save_teacher(tmp_path, seed=6)
    with pytest.raises(SpecError, match="holds a checkpoint of another teacher"):
        train(spec, tmp_path, lambda event: None, teacher_weights=other)


@pytest.mark.slow
def test_a_job_that_was_renamed_and_moved_to_another_place_in_the_queue_is_resumed(teacher, tmp_path):
    train(small_spec(teacher, train__batch=120), tmp_path, lambda event: None)
    seen = []
    train(small_spec(teacher, train__batch=120, name="other", priority=3), tmp_path, seen.append)
    assert seen[0].resumed_from == seen[0].total_steps


def test_a_network_that_cannot_train_on_single_images_is_refused_before_training(tmp_path):
    spec = small_spec(train__batch=1, student__network="pspnet_r18_half")
    with pytest.raises(SpecError, match="one image at a time") as caught:
        train(spec, tmp_path, lambda event: None)
    assert caught.value.field == "/train/batch"


def test_training_leaves_the_teacher_as_it_was(teacher):
    spec = small_spec(teacher)
    frozen = Frozen(load_teacher(spec.teacher, CLASSES)[0])
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    learner = build_learner(spec, spec.losses, frozen, len(CLASSES), CPU, None)
    learner.task.train()
    assert not any(module.training for module in frozen.modules())
    for batch in train_batches(open_dataset("streets", None, "train", (32, 48)), spec.train, 0, 3):
        learner.step(batch, 0.1, 1.0, measure=True)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert all(parameter.grad is None for parameter in frozen.parameters())


def test_measuring_leaves_the_gradient_as_it_is_to_the_bit_and_a_single_terms_norm_is_that_of_its_gradient(teacher):
    spec = small_spec(teacher)
    batch = next(train_batches(open_dataset("streets", None, "train", (32, 48)), spec.train, 0, 1))
    weights, norms = {}, {}
    for measure in (False, True):
        learner = learner_of(spec)
        _, norms[measure] = learner.step(batch, 0.01, 1.0, measure=measure)
        weights[measure] = learner.student.state_dict()
    assert all(torch.equal(value, weights[True][name]) for name, value in weights[False].items())
    assert set(norms[False]) == {"total"} and norms[False]["total"] == norms[True]["total"]
    for loss in spec.losses:
        learner = learner_of(spec)
        (loss.weight * learner.task(batch)[0][loss.term]).backward()
        expected = torch.nn.utils.get_total_norm([p.grad for p in learner.student.parameters() if p.grad is not None])
        assert norms[True][loss.term].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.slow
def test_norms_are_measured_as_often_as_asked_and_the_weights_depend_neither_on_that_nor_on_logging(teacher, tmp_path):
    spec, steps = small_spec(teacher, train__epochs=2), {}
    found = {}
    for log_every, norms_every in ((1, 5), (4, 200)):
        events = []
        changes = {"train__log_every": log_every, "train__norms_every": norms_every, "train__epochs": 2}
        _, student = train(small_spec(teacher, **changes), tmp_path / str(log_every), events.append)
        steps[log_every] = {event.step: set(event.grad_norms) for event in progress(events, "student")}
        found[log_every] = student.state_dict()
    terms = {loss.term for loss in spec.losses} | {"total"}
    assert steps[1] == {step: terms if step in (1, 5, 10, 12) else {"total"} for step in range(1, 13)}
    assert steps[4] == {1: terms, 4: {"total"}, 8: {"total"}, 12: terms}
    assert all(torch.equal(value, found[4][name]) for name, value in found[1].items())


@pytest.mark.fault("F43")
def test_a_loss_that_becomes_nan_ends_the_run_and_names_the_loss(teacher, tmp_path):
    changes = {"train__optimizer": "sgd", "train__learning_rate": 100.0, "train__clip_norm": None, "train__epochs": 4}
    spec = small_spec(teacher, **changes)
    with pytest.raises(DivergedError, match=r"The loss \w+.* became NaN or infinite in phase student") as caught:
        train(spec, tmp_path, lambda event: None)
    assert caught.value.field == "/train/learning_rate" and "Lower the learning rate" in caught.value.hint
    assert not (tmp_path / "student").exists()


def test_a_tap_that_does_not_exist_fails_before_training_with_the_names_near_it(teacher, tmp_path):
    spec = small_spec(teacher, student__taps=["encoder.level1", "encoder.levl2"])
    events = []
    with pytest.raises(SpecError, match=r"levl2.*encoder\.level2") as caught:
        train(spec, tmp_path, events.append)
    assert caught.value.field == "/student/taps"
    assert not [event for event in events if isinstance(event, Progress)]


def test_taps_of_different_number_are_refused(teacher, tmp_path):
    spec = small_spec(
        teacher,
        student__taps=["encoder.level1", "encoder.level2"],
        teacher__taps=["encoder.level1", "encoder.level2", "encoder.level3"],
    )
    with pytest.raises(SpecError, match="The student has 2 taps and the teacher 3"):
        train(spec, tmp_path, lambda event: None)


def test_a_teacher_below_its_floor_fails_with_what_to_check(teacher, tmp_path):
    spec = small_spec(teacher, teacher__floor=0.9)
    with pytest.raises(WeakTeacherError, match=r"below the floor 0\.9.*preprocessing"):
        train(spec, tmp_path, lambda event: None)


def test_images_without_labels_train_by_the_teacher_alone_and_say_that_nothing_was_scored(tmp_path):
    root = layouts.folder(tmp_path / "data")
    shutil.rmtree(root / "masks")
    weights = save_teacher(tmp_path, classes=3)
    spec = small_spec(
        weights,
        teacher__floor=0.9,
        dataset={"name": "folder", "root": str(root)},
        train__augment={"crop": [32, 32]},
        losses=[{"loss": "psd"}, {"loss": "csd"}],
    )
    events = []
    run, _ = train(spec, tmp_path / "out", events.append)
    assert any(isinstance(event, Note) and "held against its floor" in event.message for event in events)
    assert run.scores["student"].miou is None and "teacher" not in run.scores
    assert all(event.losses["loss"] > 0 for event in progress(events, "student"))


def test_a_loss_of_labels_on_images_without_them_fails_before_training(tmp_path):
    root = layouts.folder(tmp_path / "data")
    shutil.rmtree(root / "masks")
    with pytest.raises(SpecError, match="have no labels") as caught:
        train(small_spec(None, dataset={"name": "folder", "root": str(root)}), tmp_path / "out", lambda event: None)
    assert caught.value.field == "/losses"


def test_images_of_several_sizes_train_by_crops_and_are_scored_whole(tmp_path):
    root = layouts.voc_aug(tmp_path / "data")
    spec = {"dataset": {"name": "voc2012_aug", "root": str(root)}, "train__batch": 2}
    with pytest.raises(SpecError, match="differ in size") as caught:
        train(small_spec(None, **spec), tmp_path / "out", lambda event: None)
    assert caught.value.field == "/train/augment/crop"
    run, _ = train(small_spec(None, **spec, train__augment={"crop": [32, 32]}), tmp_path / "out", lambda event: None)
    assert run.scores["student"].miou is not None


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    path = save_teacher(tmp_path, classes=len(CLASSES) + 5)
    with pytest.raises(SpecError, match=f"has {len(CLASSES) + 5} classes, the dataset has {len(CLASSES)}"):
        train(small_spec(path), tmp_path / "run", lambda event: None)


def test_student_weights_of_the_wrong_shape_are_refused_with_the_tensors_named(teacher, tmp_path):
    spec = small_spec(None, student__weights=str(teacher), student__network={"name": "espnet", "options": {"q": 3}})
    with pytest.raises(WeightsError, match="does not fit the network") as caught:
        train(spec, tmp_path, lambda event: None)
    assert caught.value.field == "/student/weights"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "plain"])
def test_every_preset_trains(preset, teacher, tmp_path):
    spec = small_spec(teacher, losses=preset)
    learner = learner_of(spec)
    batch = next(train_batches(open_dataset("streets", None, "train", (32, 48)), spec.train, 0, 1))
    terms, norms = learner.step(batch, 0.01, 1.0, measure=True)
    assert all(value.isfinite() for value in terms.values()) and norms["total"] > 0


def test_best_weights_are_kept_when_asked_and_the_last_otherwise(tmp_path):
    spec = small_spec(None, train__epochs=3, train__keep="best", train__learning_rate=0.05)
    events = []
    run, _ = train(spec, tmp_path, events.append)
    scores = [event.miou for event in events if isinstance(event, Evaluated)]
    assert len(scores) == 4
    assert run.scores["student"].miou == max(scores)


@pytest.mark.parametrize("schedule", ["poly", "one_cycle"])
def test_learning_rate_rises_then_falls_and_stays_positive(schedule):
    training = Training(schedule=schedule, learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(training, step, 100) for step in range(1, 101)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < min(rates) and 0.4 < max(rates) <= 0.5
