"""What a run does when its disk, its machine or its people get in the way: small jobs, run in this process."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsd_core import checkpoint
from dsd_core.errors import DivergedError, Interrupted, NothingToKeepError, SpecError, StorageError
from dsd_core.events import Checkpoint, Evaluated, Event, EventFile, Failed, Note, Progress, Started, parse, read_lines
from dsd_core.pulse import Pulse
from dsd_core.run import Run
from dsd_core.spec import JobSpec
from dsd_core.train import fit, train
from tests.builders import files_up_to, tiny_camvid
from tests.core.small import small_spec

STEPS = 6  # of each leg


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_camvid(tmp_path_factory.mktemp("CamVid"))


def job(data: Path, **changes: Any) -> JobSpec:
    return small_spec(None, dataset={"name": "camvid", "root": str(data)}, train__batch=2, train__epochs=2, **changes)


class Witness:
    """Hears what a run tells; `wishes` come true once a step of all legs has been told of."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def after(self, total_step: int) -> bool:
        """A wish that comes after a step; while that step is scored, where it is."""
        return any(event.total_step >= total_step for event in self.of(Progress))

    def warnings(self) -> list[str]:
        return [event.message for event in self.of(Note) if event.level == "warning"]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(train(job(data), tmp_path_factory.mktemp("undisturbed"), Witness()))


def weights(trained: tuple[Run, Any]) -> dict[str, torch.Tensor]:
    return dict(trained[1].network.state_dict())


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def interrupted(spec: JobSpec, out: Path, total_step: int) -> None:
    witness = Witness()
    with pytest.raises(Interrupted):
        train(spec, out, witness, stop=partial(witness.after, total_step))


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F29")
def test_a_disk_that_is_full_for_one_checkpoint_costs_a_warning_and_no_bit(data, tmp_path, undisturbed):
    witness, full_disk = Witness(), ExitStack()

    def tell(event: Event) -> None:
        witness(event)
        if isinstance(event, Progress) and event.step == 1:
            full_disk.enter_context(files_up_to(64 * 1024))
        if witness.warnings():
            full_disk.close()

    with full_disk:
        trained = train(job(data, train__checkpoint_every_s=0.0), tmp_path, tell)
    assert len(witness.warnings()) == 1 and "no checkpoint of step 1" in witness.warnings()[0]
    assert [event.step for event in witness.of(Checkpoint)] == [STEPS], "the next try waits"
    assert same(weights(trained), undisturbed)


@pytest.mark.fault("F29")
@pytest.mark.fault("F33")
def test_a_disk_that_stays_full_ends_the_run_with_the_older_checkpoint_intact(data, tmp_path, undisturbed):
    spec, witness = job(data), Witness()
    interrupted(spec, tmp_path, 2)
    with files_up_to(64 * 1024), pytest.raises(StorageError, match="no file so large"):
        train(spec, tmp_path, witness, stop=partial(witness.after, 4))
    assert not witness.warnings(), "a checkpoint to stop at has no second try"
    with files_up_to(64 * 1024), pytest.raises(StorageError, match="no file so large"):
        train(job(data, train__checkpoint_every_s=0.0), tmp_path / "other", Witness())
    assert same(weights(train(spec, tmp_path, Witness())), undisturbed)


@pytest.mark.fault("F29")
def test_events_wait_while_the_disk_is_full_and_none_is_lost_or_cut(tmp_path):
    tell = EventFile(tmp_path / "events.jsonl")
    tell(Note(message="before"))
    with files_up_to((tmp_path / "events.jsonl").stat().st_size + 20):
        tell(Note(message="first"))
        tell(Note(message="second"))
        assert len(list(read_lines(tmp_path / "events.jsonl"))) == 1
        with pytest.raises(OSError, match="space"):
            tell(Failed(code="storage", message="full"))
    tell(Note(message="after"))
    lines = [line for line, _ in read_lines(tmp_path / "events.jsonl")]
    assert [parse(line).message for line in lines] == ["before", "first", "second", "full", "after"]


# --- the machine ------------------------------------------------------------------------------------------------------


def moved(out: Path, **changes: Any) -> None:
    """As if the newest checkpoint had been written in another environment."""
    tensors, state = checkpoint.load_newest(out / "checkpoints", pytest.fail)
    state["environment"] |= changes
    checkpoint.save(out / "checkpoints", state["total_step"], tensors, state)


@pytest.mark.fault("F34")
def test_a_run_resumed_elsewhere_goes_on_and_says_for_good_that_its_bits_may_differ(data, tmp_path):
    spec = job(data)
    interrupted(spec, tmp_path, 1)
    moved(tmp_path, threads=7, torch="2.0.0")
    elsewhere, again = Witness(), Witness()
    with pytest.raises(Interrupted):
        train(spec, tmp_path, elsewhere, stop=partial(elsewhere.after, 4))
    assert not elsewhere.of(Started)[0].bit_exact
    assert len(elsewhere.warnings()) == 1 and "torch was 2.0.0, is 2." in elsewhere.warnings()[0]
    assert "threads was 7, is 1" in elsewhere.warnings()[0]
    run, _ = train(spec, tmp_path, again)
    assert not again.of(Started)[0].bit_exact and not again.warnings() and not run.bit_exact


@pytest.mark.fault("F34")
def test_a_run_that_is_strict_about_its_bits_does_not_go_on_elsewhere(data, tmp_path):
    spec = job(data, train__resume="strict")
    interrupted(spec, tmp_path, 1)
    moved(tmp_path, code_version="0.0")
    with pytest.raises(SpecError, match=r"code_version was 0\.0") as caught:
        train(spec, tmp_path, Witness())
    assert caught.value.field == "/train/resume" and "resume: allow" in str(caught.value.hint)


def test_the_pulse_is_a_counter_that_moves_with_the_work_and_never_gets_in_its_way(tmp_path, data):
    eager, calm = Pulse(tmp_path / "eager", every_s=0.0), Pulse(tmp_path / "calm", every_s=3600.0)
    for _ in range(1000):
        eager()
        calm()
    assert [int((tmp_path / name).read_text()) for name in ("eager", "calm")] == [1000, 1]
    Pulse(tmp_path / "nowhere" / "pulse")()
    train(job(data), tmp_path, Witness())
    assert int((tmp_path / "pulse").read_text()) >= 1


# --- the people -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_told_it_is_enough_exports_the_best_of_what_was_scored(data, tmp_path):
    witness = Witness()
    result = fit(job(data, train__learning_rate=0.05), tmp_path, witness, enough=partial(witness.after, 4))
    assert result.stopped_early and result.stopped_step == 5
    scored = witness.of(Evaluated)
    assert [event.step for event in scored][:2] == [3, 5], "it is scored where it was stopped"
    assert result.student.miou == max(event.miou for event in scored)
    assert witness.of(Progress)[-1].step == 5 and result.step_cost.steps == 5
    exported = load_file(tmp_path / "student" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in exported.values())


def test_a_run_that_is_stopped_before_its_student_is_trained_has_nothing_to_keep(data, tmp_path):
    for total_step in (0, 3):
        witness = Witness()
        with pytest.raises(NothingToKeepError, match=r"before its student") as caught:
            spec = job(data, baseline=True)
            fit(spec, tmp_path / str(total_step), witness, enough=partial(_reached, witness, total_step))
        assert caught.value.code == "nothing_to_keep" and not (tmp_path / str(total_step) / "student").exists()


def _reached(witness: Witness, total_step: int) -> bool:
    return total_step == 0 or witness.after(total_step)


def test_a_further_seed_that_is_stopped_early_is_left_out_and_the_first_seeds_student_is_whole(
    data, tmp_path, undisturbed
):
    witness = Witness()
    result = fit(job(data, seeds=[0, 1]), tmp_path, witness, enough=partial(witness.after, STEPS + 1))
    assert result.stopped_early and result.stopped_step == STEPS + 2
    assert [seed.seed for seed in result.seeds] == [0] and result.miou_spread is None
    assert same(load_file(tmp_path / "student" / "model.safetensors"), undisturbed)


def test_a_stop_while_the_student_is_scored_is_answered_at_once_and_costs_no_bit(data, tmp_path, undisturbed):
    spec, witness = job(data), Witness()
    interrupted(spec, tmp_path, 3)
    _, state = checkpoint.load_newest(tmp_path / "checkpoints", pytest.fail)
    assert state["step"] == 3 and state["unscored"]
    trained = train(spec, tmp_path, witness)
    assert [event.step for event in witness.of(Evaluated)] == [3, 6]
    assert same(weights(trained), undisturbed)


# --- the numbers ------------------------------------------------------------------------------------------------------


def reckless(data: Path, **changes: Any) -> JobSpec:
    return job(
        data,
        **changes,
        train__optimizer="sgd",
        train__learning_rate=100.0,
        train__clip_norm=None,
        train__log_every=1000,
        train__checkpoint_every_s=0.0,
        train__checkpoints_kept=100,
    )


@pytest.mark.fault("F43")
def test_a_run_that_diverges_leaves_finite_checkpoints_alone(data, tmp_path):
    spec = reckless(data, losses=[{"loss": "ce", "weight": 1000.0}])
    with pytest.raises(DivergedError, match="NaN or infinite"):
        fit(spec, tmp_path, Witness())
    saved = [load_file(path / "tensors.safetensors") for path in (tmp_path / "checkpoints").iterdir()]
    assert saved and all(value.isfinite().all() for tensors in saved for value in tensors.values())


@pytest.mark.fault("F43")
def test_weights_that_are_not_finite_are_neither_saved_nor_exported_though_the_loss_still_is(data, tmp_path):
    spec = reckless(data, losses=[{"loss": "ce", "weight": 1e6}])
    # Beyond what a spec allows, so that the first step leaves infinite weights of a finite loss.
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"learning_rate": 3e38})})
    with pytest.raises(DivergedError, match="A weight of the student became NaN or infinite"):
        fit(spec, tmp_path, Witness())
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "student").exists()
