"""PSD and CSD hold the properties docs/methods.md lists, and equal references written independently in NumPy."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsd_core.distill.losses import category_correlation, category_similarity, pixel_similarity
from dsd_core.distill.losses.double_similarity import labelled_classes
from dsd_core.distill.signals import Presence
from tests.core.tensors import maps

# --- references: loops over plain formulas, no code shared with the library
# ------------------------------------------------


def unit(v: np.ndarray) -> np.ndarray:
    return v / max(np.sqrt((v**2).sum()), 1e-12)


def psd_reference(student: list[Tensor], teacher: list[Tensor], pairs: str, reduction: str) -> float:
    images, layers = student[0].shape[0], len(student)
    total = 0.0
    for n in range(images):
        attention = {}
        for who, features in (("S", student), ("T", teacher)):
            attention[who] = [unit((f[n].numpy() ** 2).sum(0).ravel()) for f in features]
        chosen = list(pairwise(range(layers))) if pairs == "adjacent" else list(combinations(range(layers), 2))
        for low, high in chosen:
            r = {who: unit(a[high] - a[low]) for who, a in attention.items()}
            squared = (r["S"] - r["T"]) ** 2
            total += (squared.sum() if reduction == "sum" else squared.mean()) / len(chosen) / images
    return float(total)


def csd_reference(
    student: Tensor, teacher: Tensor, tau: float, softmax: str, normalize: bool, pool: int | None
) -> float:
    def matrix(logits: np.ndarray) -> np.ndarray:
        if pool:
            _, h, w = logits.shape
            cells = [
                [logits[:, i : i + pool, j : j + pool].mean((1, 2)) for j in range(0, w, pool)]
                for i in range(0, h, pool)
            ]
            logits = np.array(cells).transpose(2, 0, 1)
        z = logits.reshape(len(logits), -1) / tau
        e = np.exp(z - z.max())
        q = e / e.sum(axis=0 if softmax == "category" else 1, keepdims=True)
        if normalize:
            q = np.stack([unit(row) for row in q])
        return q @ q.T

    return float(
        np.mean([((matrix(s) - matrix(t)) ** 2).mean() for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    )


# --- PSD ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["adjacent", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_psd_equals_the_numpy_reference(pairs, reduction):
    student = maps((3, 4, 6, 5), (3, 7, 6, 5), (3, 2, 6, 5), (3, 5, 6, 5))
    teacher = maps((3, 9, 6, 5), (3, 1, 6, 5), (3, 8, 6, 5), (3, 6, 6, 5), seed=1)
    ours = pixel_similarity(student, teacher, pairs=pairs, reduction=reduction)
    assert ours.item() == pytest.approx(psd_reference(student, teacher, pairs, reduction), rel=1e-12)


def test_psd_with_three_layers_has_two_adjacent_and_three_pairs_in_all():
    student, teacher = maps(*[(1, 2, 4, 4)] * 3), maps(*[(1, 2, 4, 4)] * 3, seed=1)
    assert pixel_similarity(student, teacher) != pixel_similarity(student, teacher, pairs="all")
    assert pixel_similarity(student[:2], teacher[:2]) == pixel_similarity(student[:2], teacher[:2], pairs="all")


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 3),
    layers=st.integers(2, 4),
    side=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    scale=st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**16),
)
def test_psd_lies_between_0_and_4_and_ignores_the_scale_of_any_layer(images, layers, side, scale, seed):
    student = maps(*[(images, 1 + i, *side) for i in range(layers)], seed=seed)
    teacher = maps(*[(images, 3 + i, *side) for i in range(layers)], seed=seed + 1)
    loss = pixel_similarity(student, teacher)
    assert 0 <= loss <= 4
    rescaled = [*student[:-1], student[-1] * scale]
    assert pixel_similarity(rescaled, teacher).item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
    assert pixel_similarity(student, student).item() == pytest.approx(0, abs=1e-20)


def test_psd_of_orthogonal_residuals_is_2_and_of_opposite_ones_4():
    def layer(*energies: float) -> Tensor:
        return torch.tensor(energies, dtype=torch.float64).sqrt().reshape(1, 1, 1, 4)

    student = [layer(1, 0, 0, 0), layer(0, 1, 0, 0)]
    assert pixel_similarity(student, [layer(0, 0, 1, 0), layer(0, 0, 0, 1)]).item() == pytest.approx(2)
    assert pixel_similarity(student, student[::-1]).item() == pytest.approx(4)


def test_psd_accepts_other_channels_and_other_sizes_and_uses_the_coarsest_grid():
    student = maps((2, 3, 16, 24), (2, 5, 8, 12), (2, 9, 4, 6))
    teacher = maps((2, 31, 32, 48), (2, 7, 16, 24), (2, 11, 8, 12), seed=1)
    by_default = pixel_similarity(student, teacher)
    assert by_default == pixel_similarity(student, teacher, grid=(4, 6))
    assert pixel_similarity(student, teacher, grid=(8, 12)).isfinite()


def test_psd_mean_is_the_sum_over_the_number_of_positions():
    student, teacher = maps((2, 3, 6, 7), (2, 3, 6, 7)), maps((2, 4, 6, 7), (2, 4, 6, 7), seed=1)
    total = pixel_similarity(student, teacher)
    assert pixel_similarity(student, teacher, reduction="mean").item() == pytest.approx(total.item() / 42)


def test_psd_does_not_depend_on_the_resolution_of_the_same_content():
    student, teacher = maps((1, 3, 4, 6), (1, 5, 4, 6)), maps((1, 2, 4, 6), (1, 2, 4, 6), seed=1)

    def finer(features: list[Tensor]) -> list[Tensor]:
        return [f.repeat_interleave(4, 2).repeat_interleave(4, 3) for f in features]

    fine = pixel_similarity(finer(student), finer(teacher))
    assert fine.item() == pytest.approx(pixel_similarity(student, teacher).item())


def test_psd_passes_gradcheck_and_sends_nothing_to_the_teacher():
    student = [m.requires_grad_() for m in maps((2, 3, 4, 3), (2, 2, 4, 3), (2, 4, 2, 3))]
    teacher = [m.requires_grad_() for m in maps((2, 5, 4, 3), (2, 2, 4, 3), (2, 3, 2, 3), seed=1)]
    assert torch.autograd.gradcheck(lambda *s: pixel_similarity(s, [t.detach() for t in teacher], grid=(3, 3)), student)
    pixel_similarity(student, teacher).backward()
    assert all(t.grad is None for t in teacher)
    assert all(s.grad.abs().sum() > 0 for s in student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-3, 1e3])
def test_psd_is_finite_with_its_gradient_for_zero_tiny_and_huge_features(dtype, value):
    student = [(m * value).to(dtype).requires_grad_() for m in maps((2, 3, 4, 4), (2, 3, 4, 4))]
    teacher = [m.to(dtype) for m in maps((2, 3, 4, 4), (2, 3, 4, 4), seed=1)]
    loss = pixel_similarity(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(s.grad.isfinite().all() for s in student)


def test_psd_refuses_lists_that_do_not_match():
    with pytest.raises(ValueError, match="at least two; got 1 and 1"):
        pixel_similarity(maps((1, 1, 2, 2)), maps((1, 1, 2, 2)))
    with pytest.raises(ValueError, match="got 2 and 3"):
        pixel_similarity(maps(*[(1, 1, 2, 2)] * 2), maps(*[(1, 1, 2, 2)] * 3))


# --- CSD ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", ["category", "spatial"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pool", [None, 2])
def test_csd_equals_the_numpy_reference(softmax, normalize, pool):
    student, teacher = maps((3, 5, 7, 6), (3, 5, 7, 6), seed=3)
    ours = category_similarity(student, teacher, tau=4.0, softmax=softmax, normalize=normalize, pool=pool)
    assert ours.item() == pytest.approx(csd_reference(student, teacher, 4.0, softmax, normalize, pool), rel=1e-12)


def test_csd_matrix_is_symmetric_with_unit_diagonal_and_entries_from_0_to_1():
    matrix = category_correlation(*maps((2, 6, 5, 4)))
    assert torch.allclose(matrix, matrix.transpose(1, 2), rtol=0, atol=1e-15)
    assert torch.allclose(matrix.diagonal(dim1=1, dim2=2), torch.ones(2, 6, dtype=torch.float64))
    assert (matrix >= 0).all() and (matrix <= 1 + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), classes=st.integers(2, 8), positions=st.integers(1, 30))
def test_csd_ignores_the_order_of_positions_and_follows_the_order_of_classes(seed, classes, positions):
    student, teacher = maps((2, classes, 1, positions), (2, classes, 1, positions), seed=seed)
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))
    loss = category_similarity(student, teacher)
    assert category_similarity(student[..., order], teacher[..., order]).item() == pytest.approx(loss.item(), abs=1e-15)
    renamed = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    assert category_similarity(student[:, renamed], teacher[:, renamed]).item() == pytest.approx(loss.item(), abs=1e-15)
    matrix = category_correlation(student)
    assert torch.allclose(category_correlation(student[:, renamed]), matrix[:, renamed][:, :, renamed])
    assert category_similarity(student, student) == 0


def test_csd_passes_gradcheck_and_sends_nothing_to_the_teacher():
    student, teacher = (m.requires_grad_() for m in maps((2, 3, 4, 3), (2, 3, 4, 3), seed=5))
    present = torch.tensor([[True, True, False], [True, True, True]])
    for options in ({}, {"softmax": "spatial", "normalize": False, "pool": 2, "tau": 4.0}, {"present": present}):
        assert torch.autograd.gradcheck(lambda s, o=options: category_similarity(s, teacher.detach(), **o), (student,))
    category_similarity(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_csd_of_present_classes_equals_csd_of_those_rows():
    student, teacher = maps((1, 4, 5, 5), (1, 4, 5, 5), seed=7)
    present = torch.tensor([[True, False, True, False]])
    matrix_S, matrix_T = category_correlation(student), category_correlation(teacher)
    kept = (matrix_S - matrix_T)[:, [0, 2]][:, :, [0, 2]]
    assert category_similarity(student, teacher, present=present).item() == pytest.approx(kept.square().mean().item())
    assert category_similarity(student, teacher, present=torch.zeros(1, 4, dtype=torch.bool)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_csd_is_finite_with_its_gradient_at_thousandfold_logits(dtype):
    student, teacher = ((1000 * m).to(dtype) for m in maps((2, 5, 6, 6), (2, 5, 6, 6), seed=9))
    loss = category_similarity(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_csd_refuses_logits_of_other_classes():
    with pytest.raises(ValueError, match="same images and channels"):
        category_similarity(*maps((1, 3, 4, 4), (1, 4, 4, 4)))


def test_present_classes_are_those_the_teacher_predicts_or_the_labels_hold():
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, 2] = 5
    labels = torch.tensor([[[0, 255, 0]]])
    (predicted,) = Presence().derive((logits,), lambda like: labels != 255)
    assert predicted.tolist() == [[0, 0, 1, 0]]
    assert labelled_classes(labels, 4).tolist() == [[True, False, False, False]]
