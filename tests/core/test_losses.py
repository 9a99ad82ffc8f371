"""Every loss equals a reference written independently in NumPy, and holds the properties docs/methods.md lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dsd_core.distill.losses as L
from dsd_core.distill.loss import Outlook
from dsd_core.distill.losses.cross_entropy import hard_pixels
from dsd_core.distill.ops import resize, valid_on
from dsd_core.distill.signals import Labelling
from tests.conftest import ROOT
from tests.core.tensors import maps

IGNORE = 255
SHAPE = (2, 4, 3, 5)
LABELS = torch.tensor(
    [[[0, 1, 1, 2, 255], [0, 0, 1, 2, 2], [3, 0, 255, 2, 2]], [[1, 1, 1, 1, 1], [1, 255, 1, 1, 0], [0, 0, 0, 0, 0]]]
)
VALID = LABELS != IGNORE

# --- references: plain formulas over single positions, no code shared with the library --------------------------------


def softmax(z: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def unit(v: np.ndarray) -> np.ndarray:
    return v / max(np.sqrt((v**2).sum()), 1e-12)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8))


def positions(x: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Channels of each valid position of one image."""
    return [x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2]) if valid[i, j]]


def kd_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray, temperature: float) -> float:
    each = [
        kl(softmax(b / temperature, 0), softmax(a / temperature, 0))
        for n in range(len(s))
        for a, b in zip(positions(s[n], valid[n]), positions(t[n], valid[n]), strict=True)
    ]
    return temperature**2 * float(np.mean(each))


def at_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray, reduction: str) -> float:
    images = []
    for n in range(len(s)):
        a, b = (unit(((x[n] ** 2).sum(0) * valid[n]).ravel()) for x in (s, t))
        images.append(((a - b) ** 2).sum() if reduction == "sum" else ((a - b) ** 2).mean())
    return float(np.mean(images))


def fitnet_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray) -> float:
    both = (zip(positions(s[n], valid[n]), positions(t[n], valid[n]), strict=True) for n in range(len(s)))
    return float(np.mean([(a - b) ** 2 for image in both for a, b in image]))


def skd_pairwise_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray) -> float:
    images = []
    for n in range(len(s)):
        a, b = ([unit(x) for x in positions(feature[n], valid[n])] for feature in (s, t))
        squares = [(a[i] @ a[j] - b[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(a))]
        images.append(np.sum(squares) / len(a) ** 2)
    return float(np.mean(images))


def ifvd_reference(s: np.ndarray, t: np.ndarray, labels: np.ndarray, classes: int) -> float:
    def cosines(x: np.ndarray, label: np.ndarray) -> list[float]:
        found = []
        for i, j in np.argwhere(label < classes):
            mean = np.mean([x[:, a, b] for a, b in np.argwhere(label == label[i, j])], axis=0)
            found.append(float(unit(x[:, i, j]) @ unit(mean)))
        return found

    differences = [
        (a - b) ** 2
        for n in range(len(s))
        for a, b in zip(cosines(s[n], labels[n]), cosines(t[n], labels[n]), strict=True)
    ]
    return float(np.mean(differences))


def cwd_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray, temperature: float) -> float:
    each = [
        kl(softmax(t[n, c][valid[n]] / temperature, 0), softmax(s[n, c][valid[n]] / temperature, 0))
        for n in range(len(s))
        for c in range(s.shape[1])
    ]
    return temperature**2 * float(np.mean(each))


def cirkd_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray, temperature: float) -> float:
    images = range(len(s))
    a, b = ([np.array([unit(x) for x in positions(f[n], valid[n])]) for n in images] for f in (s, t))
    total = 0.0
    for i in images:
        for j in images:
            p, q = (softmax(units[i] @ units[j].T / temperature, 1) for units in (b, a))
            total += np.mean([kl(p[row], q[row]) for row in range(len(p))])
    return total / len(s) ** 2


def dist_reference(s: np.ndarray, t: np.ndarray, valid: np.ndarray, beta: float, gamma: float) -> float:
    a, b = (softmax(np.array([x for n in range(len(z)) for x in positions(z[n], valid[n])]), 1) for z in (s, t))
    inter = 1 - np.mean([pearson(x, y) for x, y in zip(a, b, strict=True)])
    intra = 1 - np.mean([pearson(x, y) for x, y in zip(a.T, b.T, strict=True)])
    return float(beta * inter + gamma * intra)


def dice_reference(s: np.ndarray, labels: np.ndarray, smooth: float) -> float:
    counts = labels < s.shape[1]
    p = softmax(s, 1)
    found = []
    for k in sorted(set(labels[counts].tolist())):
        mine = p[:, k][counts]
        theirs = (labels == k)[counts]
        found.append(1 - (2 * (mine * theirs).sum() + smooth) / (mine.sum() + theirs.sum() + smooth))
    return float(np.mean(found))


Check = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[np.ndarray, np.ndarray], float]]
valid_np, labels_np = VALID.numpy(), LABELS.numpy()
CHECKS: dict[str, Check] = {
    "kd": (partial(L.kd, temperature=3.0, valid=VALID), partial(kd_reference, valid=valid_np, temperature=3.0)),
    "at": (partial(L.at, valid=VALID), partial(at_reference, valid=valid_np, reduction="sum")),
    "at_mean": (partial(L.at, reduction="mean"), partial(at_reference, valid=valid_np | True, reduction="mean")),
    "fitnet": (partial(L.fitnet, valid=VALID), partial(fitnet_reference, valid=valid_np)),
    "skd_pairwise": (partial(L.skd_pairwise, valid=VALID), partial(skd_pairwise_reference, valid=valid_np)),
    "ifvd": (partial(L.ifvd, labels=LABELS), partial(ifvd_reference, labels=labels_np, classes=4)),
    "cwd": (partial(L.cwd, valid=VALID), partial(cwd_reference, valid=valid_np, temperature=4.0)),
    "cirkd": (partial(L.cirkd, valid=VALID), partial(cirkd_reference, valid=valid_np, temperature=0.1)),
    "dist": (
        partial(L.dist, beta=2.0, gamma=0.5, valid=VALID),
        partial(dist_reference, valid=valid_np, beta=2.0, gamma=0.5),
    ),
}
every_loss = pytest.mark.parametrize("name", CHECKS)


@every_loss
def test_every_loss_equals_its_numpy_reference(name: str) -> None:
    ours, reference = CHECKS[name]
    for seed in (0, 1):
        student, teacher = maps(SHAPE, SHAPE, seed=seed)
        assert ours(student, teacher).item() == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-10)


@every_loss
def test_every_gradient_passes_gradcheck_and_none_flows_into_the_teacher(name: str) -> None:
    ours, _ = CHECKS[name]
    student, teacher = (x.requires_grad_() for x in maps(SHAPE, SHAPE, seed=3))
    assert torch.autograd.gradcheck(lambda s: ours(s, teacher.detach()), student)
    ours(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@every_loss
def test_every_loss_is_zero_for_a_student_that_equals_its_teacher(name: str) -> None:
    ours, _ = CHECKS[name]
    student = maps(SHAPE, seed=4)[0]
    assert ours(student, student.clone()).item() == pytest.approx(0, abs=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_every_loss_is_finite_with_its_gradient_at_tiny_and_huge_values(name, dtype, scale) -> None:
    ours, _ = CHECKS[name]
    student, teacher = ((x * scale).to(dtype) for x in maps(SHAPE, SHAPE, seed=5))
    loss = ours(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32 and student.grad.isfinite().all()


@every_loss
def test_no_loss_changes_with_what_stands_at_ignored_positions(name: str) -> None:
    ours, _ = CHECKS[name]
    if name == "at_mean":
        ours = partial(ours, valid=VALID)
    student, teacher = maps(SHAPE, SHAPE, seed=6)
    elsewhere = [
        x.where(VALID.unsqueeze(1), 7 * y) for x, y in zip((student, teacher), maps(SHAPE, SHAPE, seed=7), strict=True)
    ]
    assert ours(*elsewhere).item() == pytest.approx(ours(student, teacher).item(), rel=1e-12)


@every_loss
def test_a_batch_without_a_valid_position_gives_zero_and_a_finite_gradient(name: str) -> None:
    nothing = {"labels": torch.full_like(LABELS, IGNORE)} if name == "ifvd" else {"valid": VALID & False}
    ours, _ = CHECKS[name]
    student, teacher = maps(SHAPE, SHAPE, seed=8)
    loss = ours(student.requires_grad_(), teacher, **nothing)
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("size", [(6, 10), (2, 3), (1, 1)])
def test_teacher_and_student_may_differ_in_size(name: str, size: tuple[int, int]) -> None:
    ours, _ = CHECKS[name]
    student, teacher = maps(SHAPE, (2, 4, *size), seed=9)
    coarsest = min(SHAPE[2:], size, key=lambda grid: grid[0] * grid[1]) if name.startswith("at") else SHAPE[2:]
    if name.startswith("at"):
        energy_S, energy_T = (resize((x**2).sum(1, keepdim=True), coarsest).sqrt() for x in (student, teacher))
        expected = ours(energy_S, energy_T)
    else:
        expected = ours(student, resize(teacher, coarsest))
    assert ours(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["at", "skd_pairwise", "ifvd", "cirkd"])
def test_teacher_and_student_may_differ_in_channels_where_only_relations_are_compared(name: str) -> None:
    ours, reference = CHECKS[name]
    student, teacher = maps((2, 3, 3, 5), (2, 6, 3, 5), seed=10)
    assert ours(student, teacher).item() == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-10)


@pytest.mark.parametrize("name", ["kd", "fitnet", "cwd", "dist"])
def test_other_channels_are_refused_where_values_are_compared(name: str) -> None:
    with pytest.raises(ValueError, match="same images and channels"):
        getattr(L, name)(*maps((2, 3, 3, 5), (2, 6, 3, 5)))


SIDES = st.integers(1, 6)
BY_SHAPE = ("kd", "at", "fitnet", "skd_pairwise", "cwd", "cirkd", "dist")


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), SIDES, SIDES),
    scales=st.tuples(st.sampled_from([0.0, 1e-6, 1.0, 1e4]), st.sampled_from([0.0, 1e-6, 1.0, 1e4])),
    constant=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_loss_and_gradient_is_finite_for_any_shape_scale_and_without_variance(
    shape, scales, constant, seed
) -> None:
    student, teacher = (scale * x.float() for scale, x in zip(scales, maps(shape, shape, seed=seed), strict=True))
    if constant:
        student = student.mean(dim=(1, 2, 3), keepdim=True).expand(shape)
    labels = torch.randint(0, 2, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(seed))
    given = {name: partial(getattr(L, name)) for name in BY_SHAPE} | {
        "ifvd": partial(L.ifvd, labels=labels),
        "psd": lambda s, t: L.pixel_similarity([s, s * s], [t, t * t]),
        "csd": L.category_similarity,
    }
    for name, loss_of in given.items():
        leaf = student.clone().requires_grad_()
        loss = loss_of(leaf, teacher)
        loss.backward()
        assert loss.isfinite() and leaf.grad.isfinite().all(), name


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_at_and_the_losses_of_cosines_do_not_change_with_the_scale_of_the_features(scale: float, seed: int) -> None:
    student, teacher = maps(SHAPE, SHAPE, seed=seed)
    for name in ("at", "skd_pairwise", "ifvd", "cirkd"):
        ours, _ = CHECKS[name]
        assert ours(student * scale, teacher).item() == pytest.approx(ours(student, teacher).item(), rel=1e-6)


def test_at_does_not_depend_on_the_resolution_when_it_sums() -> None:
    student, teacher = maps((1, 3, 4, 4), (1, 3, 4, 4))
    finer = [x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (student, teacher)]
    assert L.at(*finer).item() == pytest.approx(L.at(student, teacher).item())
    assert L.at(*finer, reduction="mean").item() == pytest.approx(L.at(student, teacher, reduction="mean").item() / 16)


# --- SKD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 40])
def test_dense_pairwise_has_the_same_value_and_gradient_by_either_way_of_computing(channels: int) -> None:
    student, teacher = maps((2, channels, 4, 5), (2, channels, 4, 5), seed=12)
    a, b = (F.normalize(x.flatten(2), dim=1) for x in (student.requires_grad_(), teacher))
    dense = ((a.transpose(1, 2) @ a - b.transpose(1, 2) @ b) ** 2).mean()
    loss = L.skd_pairwise(student, teacher)
    assert loss.item() == pytest.approx(dense.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student, retain_graph=True)
    (theirs,) = torch.autograd.grad(dense, student)
    assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("pool", "cell"), [(2, (2, 2)), ("half", (2, 3))])
def test_pairwise_pools_by_the_maximum_with_smaller_cells_at_the_edge(pool: Any, cell: tuple[int, int]) -> None:
    student, teacher = maps((2, 4, 5, 7), (2, 4, 5, 7), seed=13)
    pooled = [F.max_pool2d(x, cell, stride=cell, ceil_mode=True) for x in (student, teacher)]
    assert L.skd_pairwise(student, teacher, pool=pool).item() == pytest.approx(L.skd_pairwise(*pooled).item())


def test_a_pooled_cell_is_a_node_while_one_of_its_positions_counts() -> None:
    student, teacher = maps((1, 4, 4, 4), (1, 4, 4, 4), seed=14)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :2, :2] = False
    valid[0, 2, 2] = False
    found = L.skd_pairwise(student, teacher, pool=2, valid=valid)
    least = torch.finfo(torch.float64).min
    nodes = [
        F.max_pool2d(x.masked_fill(~valid.unsqueeze(1), least), 2).flatten(2)[0, :, 1:].T for x in (student, teacher)
    ]
    a, b = (F.normalize(x, dim=1) for x in nodes)
    assert found.item() == pytest.approx(((a @ a.T - b @ b.T) ** 2).mean().item())


# --- IFVD, CIRKD ------------------------------------------------------------------------------------------------------


def test_ifvd_takes_labels_at_the_centres_of_the_feature_cells() -> None:
    student, teacher = maps(SHAPE, SHAPE, seed=15)
    fine = LABELS.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert L.ifvd(student, teacher, fine).item() == pytest.approx(L.ifvd(student, teacher, LABELS).item(), rel=1e-12)


def test_ifvd_ignores_labels_that_are_no_class() -> None:
    student, teacher = maps(SHAPE, SHAPE, seed=16)
    strange = LABELS.where(LABELS != 3, 200)
    expected = L.ifvd(student, teacher, LABELS.where(LABELS != 3, IGNORE), classes=3)
    assert L.ifvd(student, teacher, strange, classes=3).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cirkd_in_chunks_has_the_value_and_gradient_of_all_rows_at_once() -> None:
    student, teacher = maps((2, 6, 18, 20), (2, 6, 18, 20), seed=17)
    a, b = (F.normalize(x.flatten(2).transpose(1, 2), dim=2) for x in (student.requires_grad_(), teacher))
    pairs = [(i, j) for i in range(2) for j in range(2)]
    p, q = ([(u[i] @ u[j].T / 0.1).log_softmax(1) for i, j in pairs] for u in (b, a))
    whole = sum(F.kl_div(y, x, log_target=True, reduction="batchmean") for x, y in zip(p, q, strict=True)) / 4
    loss = L.cirkd(student, teacher)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student, retain_graph=True)
    (theirs,) = torch.autograd.grad(whole, student)
    assert torch.allclose(ours, theirs, atol=1e-12)


# --- losses with labels -----------------------------------------------------------------------------------------------


def test_dice_equals_its_numpy_reference_and_passes_gradcheck() -> None:
    logits = maps(SHAPE, seed=18)[0].requires_grad_()
    for smooth in (0.0, 1.0):
        expected = dice_reference(logits.detach().numpy(), labels_np, smooth)
        assert L.dice(logits, LABELS, smooth=smooth).item() == pytest.approx(expected, rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: L.dice(z, LABELS), logits)
    assert L.dice(logits, torch.full_like(LABELS, IGNORE)) == 0


def test_cross_entropy_equals_torch_and_is_zero_where_every_pixel_is_ignored() -> None:
    logits = maps(SHAPE)[0].float()
    weights = L.log_class_weights(torch.tensor([0.7, 0.2, 0.1, 0.0]))
    for class_weights in (None, weights):
        theirs = F.cross_entropy(logits, LABELS, class_weights, ignore_index=IGNORE)
        assert L.ce(logits, LABELS, class_weights).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert L.ce(logits, torch.full_like(LABELS, IGNORE)) == 0
    assert weights.argmax() == 3 and weights[0] < 2


def test_hard_pixels_are_those_below_the_threshold_and_at_least_the_share_asked_for() -> None:
    logits = maps(SHAPE, seed=19)[0]
    p = softmax(logits.numpy(), 1)
    own = np.array([[[p[n, min(labels_np[n, i, j], 3), i, j] for j in range(5)] for i in range(3)] for n in range(2)])
    assert (hard_pixels(logits, LABELS, 0.3, 0.0).numpy()[valid_np] == (own <= 0.3)[valid_np])[
        own[valid_np] > 0.0
    ].all()
    assert not hard_pixels(logits, LABELS, 0.3, 0.0)[~VALID].any()
    few = hard_pixels(logits, LABELS, 1e-9, 0.5)
    assert few.sum() == -(-VALID.sum() // 2)
    assert own[few.numpy()].max() <= own[(VALID & ~few).numpy()].min()


def test_mining_hard_pixels_averages_the_cross_entropy_over_them_alone() -> None:
    logits = maps(SHAPE, seed=20)[0]
    picked = hard_pixels(logits, LABELS, 0.3, 0.1)
    expected = F.cross_entropy(logits, LABELS.where(picked, IGNORE), ignore_index=IGNORE)
    assert L.ce(logits, LABELS, ohem=0.3).item() == pytest.approx(expected.item())


def test_pseudo_labels_are_the_teachers_classes_where_it_is_sure_enough() -> None:
    logits = maps(SHAPE, seed=21)[0]
    p = logits.softmax(1)
    (labels_N1HW,) = Outlook(logits).tell(Labelling(confidence=0.5), VALID.shape[-2:], lambda like: VALID)
    found, kept = labels_N1HW.squeeze(1), p.amax(1) >= 0.5
    assert (found[kept] == p.argmax(1)[kept]).all() and (found[~kept] == IGNORE).all() and kept.any() and (~kept).any()


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 12), (4, 6)), ((7, 9), (3, 4)), ((3, 4), (9, 12)), ((5, 5), (5, 5)), ((2, 10), (6, 4))]
)
def test_resize_equals_torch_area_pooling_and_bilinear_growth(size, grid) -> None:
    x = maps((2, 1, *size))[0]
    shrunk = F.interpolate(x, (min(size[0], grid[0]), min(size[1], grid[1])), mode="area")
    expected = F.interpolate(shrunk, grid, mode="bilinear", align_corners=False)
    assert torch.allclose(resize(x, grid), expected, atol=1e-12)


# --- the set of losses ------------------------------------------------------------------------------------------------


def test_every_file_of_the_losses_holds_a_loss_that_jobs_can_name_and_its_function() -> None:
    files = {path.stem for path in Path(L.__path__[0]).glob("*.py")} - {"__init__"}
    assert {kind.__module__.rpartition(".")[2] for kind in L.LOSSES.values()} == files
    assert all(callable(getattr(L, name)) for name in L.LOSSES if name not in ("psd", "csd"))


def test_every_loss_is_described_in_the_documents() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in L.LOSSES if f"`{name}`" not in text and f"{name} " not in text] == []


@pytest.mark.parametrize("grid", [(48, 64), (24, 16), (12, 16), (6, 8), (16, 32), (3, 4), (5, 7)])
def test_a_position_counts_where_at_least_half_of_its_pixels_do(grid: tuple[int, int]) -> None:
    valid = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    shares = F.adaptive_avg_pool2d(valid.double().unsqueeze(1), grid).squeeze(1)
    found = valid_on(valid, torch.empty(1, 1, *grid))
    clear = (shares - 0.5).abs() > 1e-9  # a half exactly may round either way where cells share pixels
    assert torch.equal(found[clear], (shares > 0.5)[clear])
    assert grid == (5, 7) or found[~clear].all()
