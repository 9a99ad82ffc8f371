"""The confusion matrix counts what it says, agrees with torchmetrics, and adds up over batches and processes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from dsd_core.evaluate import Confusion
from tests.core import counting_rank
from tests.core.counting_rank import as_numbers, counted, random_pair

NAMES = ("a", "b", "c", "d")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_iou_equals_torchmetrics_with_ignored_pixels(seed):
    predicted, labels = random_pair(seed)
    ours = Confusion(4)
    ours.add(predicted, labels)
    theirs = MulticlassJaccardIndex(4, average="none", ignore_index=255)(predicted, labels)
    assert np.nan_to_num(ours.iou()) == pytest.approx(theirs.numpy(), abs=1e-6)
    macro = MulticlassJaccardIndex(4, average="macro", ignore_index=255)(predicted, labels)
    assert ours.score(NAMES).miou == pytest.approx(macro.item(), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_accuracies_equal_torchmetrics_with_ignored_pixels(seed):
    predicted, labels = random_pair(seed)
    ours = Confusion(4)
    ours.add(predicted, labels)
    theirs = MulticlassAccuracy(4, average="none", ignore_index=255)(predicted, labels)
    assert np.nan_to_num(ours.accuracy()) == pytest.approx(theirs.numpy(), abs=1e-6)
    micro = MulticlassAccuracy(4, average="micro", ignore_index=255)(predicted, labels)
    score = ours.score(NAMES)
    assert score.pixel_accuracy == pytest.approx(micro.item(), abs=1e-6)
    assert score.class_accuracy == pytest.approx(np.nanmean(ours.accuracy()))


def test_a_class_that_is_predicted_but_never_labelled_has_an_iou_and_no_accuracy():
    confusion = Confusion(2)
    confusion.add(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    score = confusion.score(("a", "b"))
    assert score.per_class_iou == {"a": 0.5, "b": 0.0}
    assert score.per_class_accuracy == {"a": 0.5, "b": None} and score.class_accuracy == 0.5


def test_a_class_absent_from_labels_and_predictions_is_none_and_not_in_the_mean():
    confusion = Confusion(4)
    confusion.add(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 1, 1]]]))
    score = confusion.score(NAMES)
    assert score.per_class_iou == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert score.miou == 0.5 and score.pixel_accuracy == pytest.approx(2 / 3)


def test_a_pixel_is_left_out_by_its_label_never_by_its_prediction():
    confusion = Confusion(2)
    confusion.add(torch.tensor([[[1, 1, 1]]]), torch.tensor([[[255, 0, 1]]]))
    assert confusion.counts.tolist() == [[0, 1], [0, 1]]


def test_sums_over_batches_are_exact():
    whole, parts = Confusion(4), Confusion(4)
    pairs = [random_pair(seed) for seed in range(3)]
    whole.add(torch.cat([p for p, _ in pairs]), torch.cat([label for _, label in pairs]))
    for pair in pairs:
        parts.add(*pair)
    assert (whole.counts == parts.counts).all() and whole.images == parts.images == 6


def test_two_confusions_add_up():
    assert as_numbers(counted([0, 1]) + counted([2])) == as_numbers(counted([0, 1, 2]))


def test_alone_a_confusion_is_its_own_sum():
    alone = counted([0])
    whole = alone.reduced()
    assert (whole.counts == alone.counts).all() and (whole.boundary_counts == alone.boundary_counts).all()
    assert whole.images == alone.images == 2


def test_two_processes_with_unequal_shares_of_the_images_have_the_exact_counts_of_one(tmp_path):
    command = [sys.executable, counting_rank.__file__]
    shares = {"0": ["0", "1"], "1": ["2"]}
    ranks = [
        subprocess.Popen([*command, rank, "2", str(tmp_path / "meeting"), *seeds], stdout=subprocess.PIPE)
        for rank, seeds in shares.items()
    ]
    answers = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    assert answers[0] == answers[1] == as_numbers(counted([0, 1, 2]))
