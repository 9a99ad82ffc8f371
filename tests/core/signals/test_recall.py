"""A job learns the same from kept signals as from the teacher that made them, whoever filled the store, and whatever
happened to it."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsd_core.data import open_dataset
from dsd_core.data.loader import Batch, ViewSet, train_batches
from dsd_core.distill.losses import LOSSES
from dsd_core.errors import Interrupted, SpecError, StorageError
from dsd_core.events import Evaluated, Event, Note, Picture, Progress
from dsd_core.signals.plan import plan_of
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec
from dsd_core.train import fit, train
from tests.builders import tiny_camvid
from tests.core.small import save_teacher, small_spec

IMAGES, EPOCHS = 6, 3
PAIR = [{"loss": "ce"}, {"loss": "psd"}, {"loss": "csd", "logits_at": "head"}]
KINDS: dict[str, dict[str, Any]] = {
    "image": {"signals": "image"},
    "image at two scales": {"signals": "image", "scales": [0.75, 1.5]},
    "view": {"signals": "view", "views": 2},
}
HEAD = {"logits_at": "head"}
OF_SIGNALS: list[dict[str, Any]] = [
    {"loss": "psd"},
    {"loss": "psd", "name": "psd-of-the-head", "layers": "head"},
    {"loss": "csd", **HEAD},
    {"loss": "csd", "name": "csd-of-present-classes", "present_only": True},
    {"loss": "csd", "name": "csd-over-positions", "softmax": "spatial", "tau": 4.0, "pool": 2, "normalize": False},
    {"loss": "kd"},
    {"loss": "kd", "name": "kd-of-the-head", **HEAD},
    {"loss": "kd", "name": "kd-at-stride-4", "stride": 4},
    {"loss": "cwd", **HEAD},
    {"loss": "dist", **HEAD},
    {"loss": "at"},
    {"loss": "skd_holistic", **HEAD},
    {"loss": "ce", "name": "taught", "labels": "teacher", "confidence": 0.1},
]
"""Every loss that does without whole features, in each of its ways to ask."""
KD = [{"loss": "ce"}, {"loss": "kd", **HEAD}]
ONE_EPOCH = {"train__epochs": 1, "evaluate__every_epochs": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_camvid(tmp_path_factory.mktemp("CamVid"), train=IMAGES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"), classes=11)


@pytest.fixture(scope="module")
def job(data: Path, teacher: Path) -> Callable[..., JobSpec]:
    def of(**changes: Any) -> JobSpec:
        settings = {
            "dataset": {"name": "camvid", "root": str(data)},
            "losses": PAIR,
            "signals": "image",
            "train__batch": 2,
            "train__epochs": EPOCHS,
            "train__augment": {"crop": (32, 48), "scale": (0.5, 1.5)},
            "evaluate__every_epochs": EPOCHS,
            "evaluate__pictures": 0,
        }
        return small_spec(teacher, **settings | changes)

    return of


class Told:
    """A finished training: its losses, what it said, its weights, and the use it made of the store."""

    def __init__(self, spec: JobSpec, out: Path, store: Store | None = None, **options: Any) -> None:
        self.events: list[Event] = []
        out.mkdir(exist_ok=True)
        self.run, student = train(spec, out, self.events.append, store=store, **options)
        self.weights = {key: value.clone() for key, value in student.network.state_dict().items()}

    @property
    def curve(self) -> list[dict[str, float | None]]:
        return [event.losses for event in self.events if isinstance(event, Progress)]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Hits, misses, and passes of the teacher."""
        assert self.run.signals is not None
        return self.run.signals.hits, self.run.signals.misses, self.run.signals.teacher_passes

    @property
    def teacher_seconds(self) -> float:
        """That scoring the teacher took."""
        return next(
            event.seconds for event in self.events if isinstance(event, Evaluated) and event.subject == "teacher"
        )

    def notes(self, level: str) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Note) and event.level == level]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- what is learned --------------------------------------------------------------------------------------------------


def teach_the_same(kept: Told, loop: Told) -> None:
    """Half precision moves a term by less than a hundredth, before the students go apart."""
    assert kept.curve[0] == pytest.approx(loop.curve[0], rel=1e-2, abs=2e-5)
    assert [set(terms) for terms in kept.curve] == [set(terms) for terms in loop.curve]


def test_signals_of_views_teach_what_the_teacher_in_the_loop_teaches(job, tmp_path) -> None:
    one = {"losses": [{"loss": "ce"}, *OF_SIGNALS], **ONE_EPOCH}
    teach_the_same(
        Told(job(**one, signals="view", views=2), tmp_path / "kept"), Told(job(**one, signals="off"), tmp_path / "loop")
    )


def test_signals_of_images_teach_the_same_where_the_view_is_the_image(job, tmp_path) -> None:
    plain = {"scale": (1.0, 1.0), "flip": 0.0, "brightness": 0, "contrast": 0, "saturation": 0}
    one = {"losses": [{"loss": "ce"}, *OF_SIGNALS], "train__augment": plain, **ONE_EPOCH}
    teach_the_same(
        Told(job(**one, signals="image", scales=[1.0, 1.5]), tmp_path / "kept"),
        Told(job(**one, signals="off"), tmp_path / "loop"),
    )


def test_signals_of_a_scaled_image_are_those_of_a_teacher_that_sees_it_scaled(job, tmp_path) -> None:
    view = {"scale": (1.5, 1.5), "crop": (72, 96), "flip": 0.0, "brightness": 0, "contrast": 0, "saturation": 0}
    one = {"train__augment": view, **ONE_EPOCH}
    teach_the_same(
        Told(job(**one, signals="image", scales=[0.5, 1.5]), tmp_path / "kept"),
        Told(job(**one, signals="off"), tmp_path / "loop"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_store_and_a_full_one_give_the_same_bits(kind, job, tmp_path) -> None:
    store = Store(tmp_path / "store")
    cold = Told(job(**KINDS[kind]), tmp_path / "cold", store)
    warm = Told(job(**KINDS[kind]), tmp_path / "warm", store)
    assert same(cold.weights, warm.weights) and cold.curve == warm.curve
    looks = 1 if kind == "image" else 2
    assert cold.counts[2] == looks * IMAGES and warm.counts == (EPOCHS * IMAGES, 0, 0)


def test_without_images_labels_signals_are_kept_too(job, tmp_path, data) -> None:
    root = tmp_path / "own"
    for split in ("train", "val"):
        shutil.copytree(data / split, root / "images" / split)
    names = open_dataset("camvid", str(data), "val").classes
    (root / "classes.yaml").write_text(json.dumps({"classes": names}))
    losses = [{"loss": "psd"}, {"loss": "kd", "logits_at": "head"}]
    spec = {"dataset": {"name": "folder", "root": str(root)}, "losses": losses, **ONE_EPOCH}
    teach_the_same(
        Told(job(**spec, signals="view", views=1), tmp_path / "kept"),
        Told(job(**spec, signals="off"), tmp_path / "loop"),
    )


def test_images_of_several_sizes_keep_signals_each_of_its_own(job, tmp_path) -> None:
    root = tiny_camvid(tmp_path / "CamVid", train=2)
    for index, size in enumerate(((64, 48), (80, 112)), start=1):
        other = tiny_camvid(tmp_path / f"other{index}", train=index + 2, size=size)
        for folder in ("train", "trainannot"):
            shutil.copy(other / folder / f"train_{index + 1:03d}.png", root / folder)
    job_of = partial(job, dataset={"name": "camvid", "root": str(root)})
    cold = Told(job_of(), tmp_path / "cold", Store(tmp_path / "store"))
    warm = Told(job_of(), tmp_path / "warm", Store(tmp_path / "store"))
    assert same(cold.weights, warm.weights) and warm.counts[1:] == (0, 0)


def test_largest_logits_alone_teach_nearly_the_same(job, tmp_path) -> None:
    one = {"losses": KD, **ONE_EPOCH}
    whole, some = (Told(job(**one, top_k=k, signals="view"), tmp_path / str(k)) for k in (None, 4))
    assert some.run.signals.bytes < whole.run.signals.bytes
    assert some.curve[0]["kd"] == pytest.approx(whole.curve[0]["kd"], rel=0.2)
    assert some.curve[0]["kd"] != whole.curve[0]["kd"]


# --- who shares -------------------------------------------------------------------------------------------------------


SHARED: dict[str, dict[str, Any]] = {
    "another learning rate": {"train__learning_rate": 0.1},
    "another seed": {"train__seed": 7},
    "more epochs": {"train__epochs": EPOCHS + 1},
    "another batch": {"train__batch": 3},
    "another name": {"name": "other"},
    "another weight of a loss": {"losses": [{"loss": "ce"}, {"loss": "psd", "weight": 9}, PAIR[2]]},
    "no augmentation": {"train__augment": {"crop": (16, 16)}},
}


@pytest.fixture(scope="module")
def first(job, tmp_path_factory) -> tuple[Told, Store]:
    """A finished job, and the store that has its signals."""
    folder = tmp_path_factory.mktemp("first")
    return Told(job(), folder / "out", Store(folder / "store")), Store(folder / "store")


@pytest.mark.parametrize("change", SHARED)
def test_jobs_that_differ_in_what_the_teacher_does_not_see_share_its_signals(change, job, first, tmp_path) -> None:
    assert Told(job(**SHARED[change]), tmp_path / "second", first[1]).counts[1:] == (0, 0)


@pytest.mark.slow
def test_all_seeds_of_a_job_pay_the_teacher_once(job, tmp_path) -> None:
    for kind in KINDS.values():
        seeds = Told(job(**kind, seeds=[0, 1, 2]), tmp_path / str(kind), Store(tmp_path / "store"))
        assert seeds.counts[2] == (2 if len(kind) > 1 else 1) * IMAGES
        assert sum(seeds.counts[:2]) == 3 * EPOCHS * IMAGES


TAPS = ["encoder.level2_0", "encoder.level3_0"]
OTHERS: dict[str, dict[str, Any]] = {
    "size": {"dataset__size": [32, 48]},
    "losses": {"losses": [{"loss": "ce"}, {"loss": "psd", "stride": 4}, PAIR[2]]},
    "taps": {
        "student__taps": ["encoder.level2_0", "encoder.level3_0"],
        "teacher__taps": ["encoder.level2_0", "encoder.level3_0"],
    },
    "preprocessing": {"teacher__preprocess": {"order": "BGR"}},
    "scales": {"scales": [0.5]},
    "top_k": {"losses": KD, "top_k": 2},
    "kind": {"signals": "view"},
}
OTHER_VIEWS: dict[str, dict[str, Any]] = {
    "view_seed": {"view_seed": 1},
    "views": {"views": 3},
    "augmentation": {"train__augment": {"crop": (32, 48), "scale": (0.5, 1.0)}},
    "crop": {"train__augment": {"crop": (16, 48), "scale": (0.5, 1.5)}},
}


def key_of(spec: JobSpec, folder: Path) -> str:
    """Under which a job keeps signals: what is in its store after a step."""
    folder.mkdir()
    with pytest.raises(Interrupted):
        train(spec, folder, lambda event: None, stop=lambda: (folder / "signals").exists())
    (held,) = Store(folder / "signals").entries()
    return held.key


@pytest.mark.parametrize("change", [*OTHERS, *OTHER_VIEWS])
def test_whatever_the_signals_depend_on_makes_other_signals(change, job, first, tmp_path) -> None:
    if change in OTHERS:
        assert key_of(job(**OTHERS[change]), tmp_path / "out") != first[0].run.signals.key
        return
    of_view = {"signals": "view", "views": 2}
    keys = {key_of(job(**of_view | more), tmp_path / str(len(more))) for more in ({}, OTHER_VIEWS[change])}
    assert len(keys) == 2


def test_another_teacher_of_the_same_name_gets_signals_of_its_own(job, tmp_path, teacher) -> None:
    own = Path(shutil.copy(teacher, tmp_path / "t.safetensors"))
    shutil.copy(teacher.with_suffix(".json"), tmp_path / "t.json")
    spec, store = job(teacher__weights=str(own)), Store(tmp_path / "store")
    first = Told(spec, tmp_path / "first", store)
    save_file({key: value * 1.01 for key, value in load_file(own).items()}, own)
    second = Told(spec, tmp_path / "second", store)
    assert second.counts[2] == IMAGES and not same(first.weights, second.weights)


def test_an_image_that_was_changed_makes_other_signals(job, tmp_path, data) -> None:
    root = Path(shutil.copytree(data, tmp_path / "CamVid"))
    spec, store = job(dataset={"name": "camvid", "root": str(root)}), Store(tmp_path / "store")
    Told(spec, tmp_path / "first", store)
    tiny_camvid(root, train=1, val=0, seed=9)
    assert Told(spec, tmp_path / "second", store).counts[2] == IMAGES


# --- the teacher ------------------------------------------------------------------------------------------------------


def in_memory(tensor: Tensor) -> bool:
    """Whether any tensor of this process, other than the one given, has these values."""
    gc.collect()
    others = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing is not tensor)
    return any(not other.is_meta and other.shape == tensor.shape and torch.equal(other, tensor) for other in others)


@pytest.mark.slow
def test_the_teacher_leaves_memory_after_the_first_pass_and_is_still_reported(job, tmp_path, teacher) -> None:
    _, largest = max(load_file(teacher).items(), key=lambda item: item[1].numel())
    for signals, stays in (("off", True), ("image", False)):
        told = Told(job(signals=signals, evaluate__pictures=1), tmp_path / signals)
        assert in_memory(largest) is stays
        assert told.run.scores["teacher"].miou is not None
        assert any(isinstance(event, Picture) for event in told.events)
        del told
    out = tmp_path / "result"
    out.mkdir()
    result = fit(job(), out, lambda event: None)
    assert result is not None and result.teacher_cost is not None and result.teacher_cost.params > 0
    assert result.signals is not None and result.signals.teacher_passes == IMAGES
    assert json.loads((out / "result.json").read_text())["signals"]["hit_rate"] == result.signals.hit_rate


def test_images_that_an_epoch_leaves_over_do_not_keep_the_teacher(job, tmp_path, teacher) -> None:
    _, largest = max(load_file(teacher).items(), key=lambda item: item[1].numel())
    told = Told(job(train__batch=4, train__epochs=4, seeds=[0, 1]), tmp_path / "out")  # of 6 images an epoch shows 4
    assert told.counts[2] == IMAGES and not in_memory(largest)


def test_a_score_of_the_teacher_is_computed_once_and_not_believed_when_damaged(job, tmp_path) -> None:
    store = Store(tmp_path / "store")
    seconds = [Told(job(), tmp_path / name, store).teacher_seconds for name in ("first", "second")]
    (kept,) = (path for path in (tmp_path / "store" / "facts").iterdir() if '"miou"' in path.read_text())
    first = json.loads(kept.read_text())["fact"]
    kept.write_text(kept.read_text().replace(f'"miou": {first["miou"]}', '"miou": 0.99'))
    third = Told(job(), tmp_path / "third", store)
    assert seconds[0] > 0 and seconds[1] == 0 and third.teacher_seconds > 0
    assert third.run.scores["teacher"].miou == pytest.approx(first["miou"])


# --- what may happen --------------------------------------------------------------------------------------------------


def flip_a_byte(folder: Path, at: int) -> None:
    (data,) = folder.glob("*.signals/data")
    content = bytearray(data.read_bytes())
    content[at % len(content)] ^= 0x10
    data.write_bytes(content)


@pytest.mark.parametrize("at", [3, 1000])
def test_a_flipped_byte_in_the_store_changes_nothing_but_a_pass_of_the_teacher(at, job, first, tmp_path) -> None:
    store = Store(Path(shutil.copytree(first[1].folder, tmp_path / "store")))
    flip_a_byte(store.folder, at)
    second = Told(job(), tmp_path / "second", store)
    assert same(first[0].weights, second.weights) and second.counts[2] == 1
    assert all(found.damaged == 0 for found in store.verify())


def test_a_flipped_byte_in_the_middle_of_a_run_wakes_the_teacher_that_has_left(job, first, tmp_path) -> None:
    store, spec = Store(tmp_path / "store"), job()
    undisturbed = first[0]

    class Flipping(list):
        def append(self, event: Event) -> None:
            super().append(event)
            if isinstance(event, Progress) and event.step == 6:
                for record in range(0, 20_000, 500):
                    flip_a_byte(store.folder, record)

    (tmp_path / "disturbed").mkdir()
    run, student = train(spec, tmp_path / "disturbed", Flipping().append, store=store)
    assert same(undisturbed.weights, dict(student.network.state_dict()))
    assert run.signals is not None and run.signals.teacher_passes > IMAGES


def test_a_run_ended_while_it_fills_the_store_goes_on_with_the_same_bits(job, tmp_path) -> None:
    spec = job(signals="view", views=4)
    undisturbed = Told(spec, tmp_path / "undisturbed")
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    out.mkdir()
    events: list[Event] = []
    with pytest.raises(Interrupted):
        train(spec, out, events.append, store=store, stop=lambda: any(isinstance(e, Progress) for e in events))
    (held,) = store.entries()
    assert 0 < held.filled < held.records
    again = Told(spec, out, store)
    assert same(again.weights, undisturbed.weights) and again.run.bit_exact
    assert again.counts == undisturbed.counts  # over both attempts


@pytest.fixture
def no_room(tmp_path: Path) -> Store:
    """A store whose limit no entry fits."""
    return Store(tmp_path / "store", limit_bytes=1000)


def test_without_room_the_teacher_computes_each_time_and_the_student_is_the_same(job, first, tmp_path, no_room) -> None:
    unkept = Told(job(), tmp_path / "unkept", no_room)
    assert same(first[0].weights, unkept.weights)
    assert unkept.counts == (0, EPOCHS * IMAGES, EPOCHS * IMAGES)
    assert any("computed each time" in warning for warning in unkept.notes("warning"))
    assert unkept.run.signals.key is None


def test_a_job_that_requires_the_store_fails_without_room_and_says_what_to_do(job, tmp_path, no_room) -> None:
    with pytest.raises(StorageError, match="which the job requires") as failed:
        Told(job(store="require"), tmp_path / "out", no_room)
    assert failed.value.field == "/store" and failed.value.hint


# --- what is said and refused -----------------------------------------------------------------------------------------


def test_what_the_job_will_ask_of_teacher_and_disk_is_said_before_its_first_step(first) -> None:
    told, _ = first
    (note,) = (text for text in told.notes("info") if "signals" in text)
    step = next(place for place, event in enumerate(told.events) if isinstance(event, Progress))
    assert note in {event.message for event in told.events[:step] if isinstance(event, Note)}
    assert "6 records, of which 0 are there" in note and "6 passes in place of 18" in note
    assert "66.7% of the views need none" in note
    assert told.events[step].signals == {"hit_rate": 0.0, "teacher_passes": 6.0}
    # More than were promised: images that filled up the teacher's first pass were there when they were asked for.
    assert told.counts == (16, 2, 6) and told.run.signals.hit_rate == pytest.approx(8 / 9)


@pytest.mark.parametrize(("kind", "loss"), [("image", "fitnet"), ("view", "ifvd")])
def test_losses_of_whole_features_are_refused_by_name(kind, loss, job) -> None:
    with pytest.raises(SpecError, match=f"{loss} needs whole features") as refused:
        plan_of(job(signals=kind, losses=[{"loss": "ce"}, {"loss": loss}]))
    assert refused.value.field == "/signals" and refused.value.hint


def test_the_choice_is_left_to_losses_and_epochs(job) -> None:
    auto = partial(job, signals="auto")
    assert plan_of(auto()) == plan_of(job(signals="image"))
    assert plan_of(auto(losses=[{"loss": "ce"}, {"loss": "fitnet"}])) is None
    assert plan_of(auto(train__epochs=1, evaluate__every_epochs=1)) is None  # nothing would be spared
    assert plan_of(job(signals="off")) is None


def test_every_loss_says_what_it_takes_of_the_teacher() -> None:
    kept = {name for name, kind in LOSSES.items() if kind().signals()}
    assert kept == {"psd", "csd", "kd", "cwd", "dist", "at", "skd_holistic"}


def batches_of(data: Path, batch: int, steps: int, views: ViewSet | None) -> list[Batch]:
    training = small_spec(train__batch=batch, train__augment={"crop": (32, 48)}).train
    return list(train_batches(open_dataset("camvid", str(data), "train"), training, 0, steps, views=views))


def test_a_set_of_views_comes_again_and_each_view_of_it_is_seen(data) -> None:
    batches = batches_of(data, 4, 8, ViewSet(count=2, seed=5))
    seen = {view.key for batch in batches for view in batch.views}
    assert {seed for seed, _, _ in seen} == {5} and {view for _, view, _ in seen} == {0, 1}
    shown: dict[Any, Tensor] = {}
    for batch in batches:
        for view, image in zip(batch.views, batch.images_N3HW, strict=True):
            assert torch.equal(shown.setdefault(view.key, image), image)


def test_a_batch_of_more_than_all_images_shows_several_views_of_each(data) -> None:
    (batch,) = batches_of(data, 15, 1, ViewSet(count=2, seed=5))
    assert {view.key[1] for view in batch.views} == {0, 1} and max(view.key[2] for view in batch.views) < IMAGES


def test_fresh_views_are_those_of_a_set_that_is_never_gone_through(data) -> None:
    fresh, of_set = batches_of(data, 2, 9, None), batches_of(data, 2, 9, ViewSet(count=9, seed=0))
    assert all(torch.equal(a.images_N3HW, b.images_N3HW) for a, b in zip(fresh, of_set, strict=True))
