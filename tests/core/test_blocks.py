"""Maps computed in blocks, as on one CPU thread, have the values and gradients of the formulas over whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_core.distill.losses import kd
from dsd_core.distill.ops import class_correlation
from tests.core.tensors import maps

SHAPES = [(2, 5, 150, 130), (15, 3, 40, 40), (1, 4, 3, 20_000)]  # images in parts, several at once, rows at a time


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def some_of(shape: tuple[int, ...]) -> Tensor:
    """Positions NHW that count."""
    return torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(4)) > 0.3


def assert_alike(ours: Callable[[Tensor], Tensor], formula: Callable[[Tensor], Tensor], student: Tensor) -> None:
    """Value and gradient."""
    leaves = [student.clone().requires_grad_() for _ in range(2)]
    found = [function(leaf) for function, leaf in zip((ours, formula), leaves, strict=True)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)
    towards = torch.rand(found[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = [torch.autograd.grad((one * towards).sum(), leaf)[0] for one, leaf in zip(found, leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
def test_kd_is_the_divergence_of_two_log_softmaxes(shape, layout) -> None:
    student, teacher = maps(shape, shape, seed=3)
    valid = some_of(shape)

    def formula(student: Tensor) -> Tensor:
        log_p_S, log_p_T = ((logits / 2.0).log_softmax(dim=1) for logits in (student, teacher))
        return 4.0 * F.kl_div(log_p_S, log_p_T, reduction="none", log_target=True).sum(dim=1)[valid].mean()

    ours = student.contiguous(memory_format=layout)
    assert_alike(lambda student: kd(student, teacher, temperature=2.0, valid=valid), formula, ours)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "some"])
def test_class_correlation_is_of_the_softmaxes_directions(shape, masked) -> None:
    (student,) = maps(shape, seed=3)
    valid = some_of(shape) if masked else None

    def formula(student: Tensor) -> Tensor:
        q = (student / 3.0).softmax(dim=1)
        directions = F.normalize((q if valid is None else q * valid.unsqueeze(1)).flatten(2), dim=2)
        return directions @ directions.transpose(1, 2)

    assert_alike(lambda student: class_correlation(student, 3.0, valid), formula, student)
