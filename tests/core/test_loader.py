"""Batches: the same whatever the loader processes, from whatever step."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dsd_core.data import Dataset, open_dataset
from dsd_core.data.loader import Batch, cached, eval_batches, steps_per_epoch, train_batches
from dsd_core.spec import Training
from tests.builders import tiny_camvid
from tests.core import layouts


def training(**changes: object) -> Training:
    return Training.model_validate({"batch": 3, "seed": 11, "augment": {"crop": (32, 48)}, **changes})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    root = tiny_camvid(tmp_path_factory.mktemp("camvid"), train=11, val=5)
    return cached(open_dataset("camvid", root, "train"))


def same(first: Batch, second: Batch) -> bool:
    return (
        first.indices == second.indices
        and torch.equal(first.images_N3HW, second.images_N3HW)
        and torch.equal(first.labels_NHW, second.labels_NHW)
    )


def test_batch_has_the_shapes_and_types_it_says(dataset) -> None:
    (batch,) = train_batches(dataset, training(), 0, 1)
    assert batch.images_N3HW.shape == (3, 3, 32, 48) and batch.images_N3HW.dtype == torch.uint8
    assert batch.labels_NHW.shape == (3, 32, 48) and batch.labels_NHW.dtype == torch.int64
    assert len(batch) == len(batch.indices) == 3
    assert batch.images_N3HW.is_contiguous(memory_format=torch.channels_last)
    assert same(batch.to("cpu"), batch)


@pytest.mark.parametrize(("images", "batch", "steps"), [(367, 8, 45), (8, 8, 1), (9, 8, 1), (3, 8, 1), (240, 16, 15)])
def test_epoch_has_its_full_batches_and_at_least_one(images: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(images, batch) == steps


def test_each_epoch_visits_images_at_most_once_in_another_order(dataset) -> None:
    orders = []
    batches = train_batches(dataset, training(), 0, 6)
    for _ in range(2):
        seen = [index for batch in islice(batches, 3) for index in batch.indices]
        assert len(set(seen)) == 9
        orders.append(seen)
    assert orders[0] != orders[1]


def test_all_images_are_visited_equally_over_epochs(dataset) -> None:
    visits = Counter(index for batch in train_batches(dataset, training(), 0, 330) for index in batch.indices)
    assert set(visits) == set(range(11))
    assert all(75 < count <= 110 for count in visits.values())


def test_epochs_see_different_views_of_an_image(dataset) -> None:
    views = [
        batch.images_N3HW[batch.indices.index(0)]
        for batch in train_batches(dataset, training(), 0, 12)
        if 0 in batch.indices
    ]
    assert len(views) >= 2 and not torch.equal(views[0], views[1])


def test_loader_processes_change_nothing(dataset) -> None:
    alone = list(train_batches(dataset, training(loaders=0), 0, 7))
    helped = list(train_batches(dataset, training(loaders=2), 0, 7))
    assert len(alone) == len(helped) == 7
    assert all(same(*pair) for pair in zip(alone, helped, strict=True))


@pytest.mark.parametrize("first_step", [1, 3, 5, 8])
def test_starting_at_a_step_gives_what_a_whole_run_gives_from_there(dataset, first_step: int) -> None:
    whole = list(train_batches(dataset, training(), 0, 9))
    resumed = list(train_batches(dataset, training(), first_step, 9))
    assert len(resumed) == 9 - first_step
    assert all(same(*pair) for pair in zip(whole[first_step:], resumed, strict=True))


def test_resuming_at_a_late_step_costs_no_more_than_starting(dataset) -> None:
    start = time.perf_counter()
    (batch,) = train_batches(dataset, training(epochs=100_000), 10**9, 10**9 + 1)
    assert len(batch) == 3 and time.perf_counter() - start < 5


def test_finished_run_gives_no_batch(dataset) -> None:
    assert list(train_batches(dataset, training(), 9, 9)) == []


def test_seed_decides_order_and_views(dataset) -> None:
    first, again, other = (next(train_batches(dataset, training(seed=seed), 0, 1)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)


def test_loading_neither_uses_nor_moves_the_global_generator(dataset) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = list(train_batches(dataset, training(), 0, 4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert all(same(*pair) for pair in zip(first, train_batches(dataset, training(), 0, 4), strict=True))


def test_dataset_smaller_than_a_batch_is_gone_through_again_with_other_views(dataset) -> None:
    (batch,) = train_batches(dataset, training(batch=25), 0, 1)
    assert len(batch) == 25 and set(Counter(batch.indices).values()) == {2, 3}
    twice = [row for row, index in enumerate(batch.indices) if index == 4]
    assert not torch.equal(batch.images_N3HW[twice[0]], batch.images_N3HW[twice[1]])


def test_evaluation_gives_every_image_whole_and_in_order(dataset) -> None:
    batches = list(eval_batches(dataset, 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert [index for batch in batches for index in batch.indices] == list(range(11))
    image, label = dataset[9]
    assert torch.equal(batches[2].images_N3HW[1], torch.from_numpy(image.copy()).permute(2, 0, 1))
    assert torch.equal(batches[2].labels_NHW[1], torch.from_numpy(label.copy()).long())
    assert batches[0].labels_NHW.dtype == torch.int64


def test_evaluation_batches_hold_images_of_one_size(tmp_path: Path) -> None:
    dataset = cached(open_dataset("coco_stuff", layouts.coco_stuff(tmp_path), "train"))
    assert not dataset.same_size
    assert [batch.indices for batch in eval_batches(dataset, 4)] == [(0,), (1,)]
    voc = open_dataset("voc2012_aug", layouts.voc_aug(tmp_path), "train")
    assert [batch.indices for batch in eval_batches(voc, 2)] == [(0, 2), (1,)]


def test_training_batches_take_one_crop_from_images_of_all_sizes(tmp_path: Path) -> None:
    dataset = open_dataset("voc2012_aug", layouts.voc_aug(tmp_path), "train")
    (batch,) = train_batches(dataset, training(augment={"crop": (16, 16)}), 0, 1)
    assert batch.labels_NHW.shape == (3, 16, 16)


def test_with_labels_a_loss_counts_where_one_is_known(dataset) -> None:
    (batch,) = train_batches(dataset, training(augment={"crop": (64, 96), "scale": (0.5, 0.5)}), 0, 1)
    assert batch.labelled and torch.equal(batch.valid_NHW, batch.labels_NHW != 255) and not batch.valid_NHW.all()


def unlabelled(folder: Path) -> Dataset:
    root = layouts.folder(folder)
    shutil.rmtree(root / "masks")
    return cached(open_dataset("folder", root, "train"))


@pytest.mark.parametrize("loaders", [0, 2])
def test_without_labels_a_loss_counts_where_the_image_is(loaders: int, tmp_path: Path) -> None:
    root = layouts.folder(tmp_path)
    for name in "abc":
        layouts.save_ids(root / "masks" / "train" / f"{name}.png", [1])
    asked = training(loaders=loaders, augment={"crop": (36, 48), "scale": (0.5, 0.9)})
    (twin,) = train_batches(open_dataset("folder", root, "train"), asked, 0, 1)
    (batch,) = train_batches(unlabelled(tmp_path), asked, 0, 1)
    assert not batch.labelled and (batch.labels_NHW == 255).all()
    assert torch.equal(batch.valid_NHW, twin.labels_NHW == 1) and torch.equal(batch.images_N3HW, twin.images_N3HW)
    moved = batch.to("cpu")
    assert not moved.labelled and torch.equal(moved.valid_NHW, batch.valid_NHW)


def test_whole_images_without_labels_are_valid_everywhere(tmp_path: Path) -> None:
    (batch,) = eval_batches(unlabelled(tmp_path), 4)
    assert not batch.labelled and (batch.labels_NHW == 255).all() and batch.valid_NHW.all()


def test_labels_stay_bytes_until_the_batch(dataset) -> None:
    assert dataset.read(0)[1].dtype == np.uint8 and dataset[0][1].dtype == np.int64


def test_real_camvid_loads_with_processes(camvid: Path) -> None:
    images = open_dataset("camvid", camvid, "train", (120, 160))
    batches = list(train_batches(images, training(loaders=2, augment={"crop": (96, 128)}), 0, 3))
    assert [batch.images_N3HW.shape for batch in batches] == [(3, 3, 96, 128)] * 3
    assert all(set(batch.labels_NHW.unique().tolist()) <= {*range(11), 255} for batch in batches)


def test_loader_processes_outlive_a_stop_signal_and_end_with_the_iterator(dataset) -> None:
    batches = train_batches(dataset, training(loaders=2), 0, 30)
    next(batches), next(batches)  # one from each, which has then begun to ignore the signal
    helpers = multiprocessing.active_children()
    assert len(helpers) == 2
    for helper in helpers:
        os.kill(helper.pid, signal.SIGTERM)
    assert sum(1 for _ in batches) == 28
    del batches
    for helper in helpers:
        helper.join(timeout=30)
        assert not helper.is_alive()
