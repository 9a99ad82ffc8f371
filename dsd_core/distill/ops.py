"""What several losses do to tensors: bring two to one grid, normalise, mask.

Letters, here and in the losses: N images, C channels, K classes, H x W positions (P of them), L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsd_core.distill.critic import Critic

EPS = 1e-12
Grid = tuple[int, int]


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision inputs are computed in float32, float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def normalize(v: Tensor) -> Tensor:
    """`v / max(||v||_2, eps)` over the last dimension."""
    found: Tensor = _Normalize.apply(v)
    return found


class _Normalize(torch.autograd.Function):
    """One node of the graph in the place of five."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        found = v / norms.clamp_min(EPS)
        ctx.save_for_backward(found, norms)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found, norms = ctx.saved_tensors
        # What was divided by eps and not by its norm does not turn with it.
        turning = (gradient * found).sum(dim=-1, keepdim=True) * (norms > EPS)
        return (gradient - found * turning) / norms.clamp_min(EPS)


def first(feature_NCHW: Tensor, grid: Grid) -> Tensor:
    """The first rows and columns of a feature. The gradient lies in memory as the feature does: torch's own would not,
    and a network's backward pass would take twice the time from there on."""
    found: Tensor = _First.apply(feature_NCHW, *grid)
    return found


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_NCHW: Tensor, rows: int, columns: int) -> Tensor:
        ctx.like = torch.empty_like(feature_NCHW, device="meta")
        return feature_NCHW[..., :rows, :columns]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if gradient.shape == ctx.like.shape and gradient.stride() == ctx.like.stride():
            return gradient, None, None
        whole = torch.empty_like(ctx.like, device=gradient.device)
        _cleared_beyond(whole, grid_of(gradient)).copy_(gradient)
        return whole, None, None


def energy(feature_NCHW: Tensor, grid: Grid | None = None) -> Tensor:
    """Attention of each position: the sum over channels of squares, NCHW to N1HW, in float32 (or 64). With `grid`, of
    the first rows and columns."""
    found: Tensor = _Energy.apply(feature_NCHW, *(grid or grid_of(feature_NCHW)))
    return found


class _Energy(torch.autograd.Function):
    """The sum of squares without the squares in memory: a tenth of the time for the 2048 channels of a teacher."""

    CHANNELS = 64
    """Channels squared at a time where they are not neighbours in memory: few enough to stay in a core's cache."""

    @staticmethod
    def forward(ctx: Any, feature_NCHW: Tensor, rows: int, columns: int) -> Tensor:
        ctx.save_for_backward(feature_NCHW)
        inside = feature_NCHW[..., :rows, :columns]
        if inside.stride(1) == 1:
            wide = torch.float64 if inside.dtype == torch.float64 else torch.float32
            return torch.linalg.vector_norm(inside, dim=1, keepdim=True, dtype=wide).square_()
        parts = inside.split(_Energy.CHANNELS, dim=1)
        return torch.stack([widen(part).square().sum(dim=1, keepdim=True) for part in parts]).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, gradient_N1HW: Tensor) -> tuple[Tensor, None, None]:
        (feature_NCHW,) = ctx.saved_tensors
        whole = torch.empty_like(feature_NCHW)
        rows, columns = grid = grid_of(gradient_N1HW)
        torch.mul(feature_NCHW[..., :rows, :columns], 2 * gradient_N1HW, out=_cleared_beyond(whole, grid))
        return whole, None, None


def _cleared_beyond(whole: Tensor, grid: Grid) -> Tensor:
    """The first rows and columns of a tensor, whose others become zero."""
    rows, columns = grid
    if rows < whole.shape[-2]:
        whole[..., rows:, :].zero_()
    if columns < whole.shape[-1]:
        whole[..., :rows, columns:].zero_()
    return whole[..., :rows, :columns]


def correlation(q: Tensor, *, normalize: bool = True) -> Tensor:
    """Inner products of the rows of N x K x P, or with `normalize` of the rows' directions: N x K x K."""
    found: Tensor = _Correlation.apply(q, normalize)
    return found


class _Correlation(torch.autograd.Function):
    """`n(q) @ n(q).T` with K x K numbers to divide, not K x P, and a backward pass of one product."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, normalize: bool) -> Tensor:
        found, inverse = _divided(q @ q.transpose(1, 2), normalize)
        ctx.save_for_backward(q, found, inverse)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        q, found, inverse = ctx.saved_tensors
        return _to_rows(gradient, found, inverse) @ q, None


def class_correlation(
    logits_NKHW: Tensor, tau: float, valid_NHW: Tensor | None = None, *, normalize: bool = True
) -> Tensor:
    """`correlation` of the K classes' probabilities `softmax(logits / tau)`, which are zero where `valid` is false."""
    found: Tensor = _ClassCorrelation.apply(logits_NKHW, tau, valid_NHW, normalize)
    return found


class _ClassCorrelation(torch.autograd.Function):
    """One node of the graph in the place of a dozen, and in blocks that stay in a core's cache."""

    @staticmethod
    def forward(ctx: Any, logits_NKHW: Tensor, tau: float, valid_NHW: Tensor | None, normalize: bool) -> Tensor:
        images, classes, *grid = logits_NKHW.shape
        wide = torch.float64 if logits_NKHW.dtype == torch.float64 else torch.float32
        # Rows of zeros up to a multiple of four: MKL takes half the time for the products then.
        rows = classes + -classes % 4
        q = torch.empty(images, rows, *grid, dtype=wide, device=logits_NKHW.device)
        q[:, classes:] = 0
        gram = q.new_zeros(images, rows, rows)
        for some, part in _blocks(q):
            block = q[some, :, part]
            _fill_with_shares(block[:, :classes], logits_NKHW[some, :, part], tau)
            if valid_NHW is not None:
                block.mul_(valid_NHW[some, part].unsqueeze(1))
            flat = block.flatten(2)
            gram[some].baddbmm_(flat, flat.transpose(1, 2))
        found, inverse = _divided(gram[:, :classes, :classes], normalize)
        ctx.tau, ctx.dtype = tau, logits_NKHW.dtype
        ctx.save_for_backward(q, found, inverse)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        q, found, inverse = ctx.saved_tensors
        classes = found.shape[1]
        none = q.shape[1] - classes
        turn = F.pad(_to_rows(gradient, found, inverse) / ctx.tau, (0, none, 0, none))
        to_logits = torch.empty(len(q), classes, *grid_of(q), dtype=ctx.dtype, device=q.device)
        for some, part in _blocks(q):
            flat = q[some, :, part].flatten(2)
            # Where a probability was made zero, so is what flows back.
            back = torch.ops.aten._softmax_backward_data(turn[some] @ flat, flat, 1, q.dtype)
            block = to_logits[some, :, part]
            block.copy_(back[:, :classes].unflatten(2, grid_of(block)))
        return to_logits, None, None, None


def divergence(student_NKHW: Tensor, teacher_NKHW: Tensor, tau: float, valid_NHW: Tensor) -> Tensor:
    """`KL(softmax(teacher / tau) || softmax(student / tau))` over the K classes, mean over the positions where `valid`
    is true; zero where it is true nowhere. No gradient goes to the teacher."""
    found: Tensor = _Divergence.apply(student_NKHW, teacher_NKHW, tau, valid_NHW)
    return found


class _Divergence(torch.autograd.Function):
    """In blocks that stay in a core's cache, and of which the gradient is what is kept: two thirds of the time of two
    log-softmaxes and what comes after them."""

    @staticmethod
    def forward(ctx: Any, student_NKHW: Tensor, teacher_NKHW: Tensor, tau: float, valid_NHW: Tensor) -> Tensor:
        to_student = torch.empty_like(student_NKHW)
        summed = student_NKHW.new_zeros(())
        for some, part in _blocks(student_NKHW):
            student, teacher = student_NKHW[some, :, part], teacher_NKHW[some, :, part]
            p_S, p_T, apart = (torch.empty(student.shape, dtype=student.dtype, device=student.device) for _ in range(3))
            _fill_with_exponents(p_S, student, tau)
            _fill_with_exponents(p_T, teacher, tau)
            torch.sub(p_T, p_S, out=apart)
            sums_S, sums_T = _to_shares(p_S), _to_shares(p_T)
            bits = apart.mul_(p_T).sum(dim=1, keepdim=True) + sums_S.log2_() - sums_T.log2_()
            valid = valid_NHW[some, part].unsqueeze(1)
            summed += bits.where(valid, 0).sum()
            to_student[some, :, part] = p_S.sub_(p_T).mul_(valid)
        count = valid_NHW.sum().clamp_min(1)
        ctx.tau = tau
        ctx.save_for_backward(to_student, count)
        return summed / count / _LOG2_E

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        to_student, count = ctx.saved_tensors
        return to_student * (gradient / count / ctx.tau), None, None, None


_BLOCK = 1 << 14
"""Positions computed at once on one CPU thread."""


def _blocks(maps_NCHW: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and rows of the map that are computed at once: all, where several threads or another device compute them.

    Threads wait for each other at every operation, a time slice each time where other programs want their cores: two
    threads beside two such programs took 7 s for what they take .3 s for without blocks.
    """
    images, _, height, width = maps_NCHW.shape
    in_blocks = maps_NCHW.device.type == "cpu" and torch.get_num_threads() == 1
    some = max(1, _BLOCK // (height * width)) if in_blocks else images
    rows = max(1, min(height, _BLOCK // width)) if in_blocks else height
    for image in range(0, images, some):
        for row in range(0, height, rows):
            yield slice(image, image + some), slice(row, row + rows)


def _fill_with_shares(q: Tensor, logits: Tensor, tau: float) -> None:
    """Write `softmax(logits / tau)` over the classes, dimension 1."""
    _fill_with_exponents(q, logits, tau)
    _to_shares(q)


_LOG2_E = math.log2(math.e)


def _fill_with_exponents(q: Tensor, logits: Tensor, tau: float) -> None:
    """Write exponents of two, none over zero, of which the shares are the powers divided by their sum.

    Of two, since torch takes the powers of e from MKL, which takes three times as long on processors of AMD.
    """
    q.copy_(logits)
    q.sub_(q.amax(dim=1, keepdim=True)).mul_(_LOG2_E / tau)


def _to_shares(exponents: Tensor) -> Tensor:
    """Turn exponents into shares where they are; returns the sums of the powers."""
    sums = exponents.exp2_().sum(dim=1, keepdim=True)
    exponents.mul_(sums.reciprocal())
    return sums


def _divided(gram: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """Inner products N x K x K, divided by the rows' norms if they are to be, and then one over those, N x K x 1."""
    if not normalize:
        return gram, None
    inverse = gram.diagonal(dim1=1, dim2=2).clamp_min(EPS**2).rsqrt().unsqueeze(2)
    return gram * inverse * inverse.transpose(1, 2), inverse


def _to_rows(gradient: Tensor, found: Tensor, inverse: Tensor | None) -> Tensor:
    """N x K x K that times the rows are their gradient, from the gradient of what `_divided` found."""
    both = gradient + gradient.transpose(1, 2)
    if inverse is None:
        return both
    turning = (both * found).sum(dim=2) * (inverse.squeeze(2) < 1 / EPS)  # as in _Normalize
    return (both - torch.diag_embed(turning)) * inverse * inverse.transpose(1, 2)


def grid_of(x: Tensor) -> Grid:
    """Height and width."""
    return x.shape[-2], x.shape[-1]


def coarsest(features: Sequence[Tensor]) -> Grid:
    """The grid with the fewest positions."""
    return grid_of(min(features, key=lambda feature: feature.shape[-2] * feature.shape[-1]))


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 (or 64), without gradient to the teacher, the teacher resized to the student's grid."""
    return widen(student), resize(widen(teacher.detach()), grid_of(student))


def refuse_other_channels(student: Tensor, teacher: Tensor, loss: str) -> None:
    """Raise ValueError unless both have the same images and channels."""
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{loss} needs the same images and channels of both networks; got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}. Project the student's channels to the teacher's with a 1x1 convolution."
        )


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def valid_on(valid_NHW: Tensor | None, like: Tensor) -> Tensor:
    """bool N x H x W on the grid of `like`: a position counts where at least half of its pixels do; None: all do."""
    grid = grid_of(like)
    if valid_NHW is None:
        return torch.ones(like.shape[0], *grid, dtype=torch.bool, device=like.device)
    if grid_of(valid_NHW) == grid:
        return valid_NHW
    (rows, more_rows), (columns, more_columns) = map(divmod, grid_of(valid_NHW), grid)
    if more_rows or more_columns or columns not in _WORDS or not 0 < rows * columns < 256:
        return resize(valid_NHW.unsqueeze(1).float(), grid).squeeze(1) >= 0.5
    # Cells of whole pixels, in a tenth of the time: a cell's pixels in a row are the bytes of one number. Summed over
    # the rows none of them overflows, and times 0x0101... the highest is the sum of all.
    words = valid_NHW.contiguous().view(_WORDS[columns])
    summed = words.unflatten(1, (grid[0], rows)).sum(dim=2, dtype=words.dtype)
    counts = (summed * int.from_bytes(b"\1" * columns)) >> 8 * (columns - 1) & 255
    return counts >= (rows * columns + 1) // 2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is true; zero where it is true nowhere."""
    return values.where(mask, 0).sum() / mask.sum().clamp_min(1)


def log_softmax_over(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over the last dimension among the positions of `mask`; zero elsewhere."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).log_softmax(dim=-1).where(mask, 0)


def one_hot(labels_NHW: Tensor, classes: int, valid_NHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels as N x K x P of zeros and ones; positions that do not count are zero in every class."""
    flat, counts = labels_NHW.flatten(1), valid_NHW.flatten(1)
    hot = torch.zeros(flat.shape[0], classes, flat.shape[1], dtype=dtype, device=labels_NHW.device)
    return hot.scatter_(1, flat.where(counts, 0).unsqueeze(1), counts.unsqueeze(1).to(dtype))


def labels_on(labels_NHW: Tensor, grid: Grid) -> Tensor:
    """Labels at the centres of the grid's cells."""
    rows, columns = (
        ((torch.arange(to, device=labels_NHW.device) + 0.5) * side / to).long()
        for side, to in zip(grid_of(labels_NHW), grid, strict=True)
    )
    return labels_NHW[:, rows][:, :, columns]


def resize(maps: Tensor, grid: Grid) -> Tensor:
    """Resize NCHW to the grid: area average where an axis shrinks, bilinear (align_corners=False) where it grows.

    Two matrix products: the same numbers as torch's own kernels, with a backward that is deterministic on every device.
    """
    height, width = maps.shape[-2:]
    if height != grid[0]:
        maps = _axis_matrix(height, grid[0], maps.dtype, maps.device) @ maps
    if width != grid[1]:
        maps = maps @ _axis_matrix(width, grid[1], maps.dtype, maps.device).T
    return maps


@lru_cache(maxsize=64)
def _axis_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights size_out x size_in, rows summing to 1."""
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for row in range(size_out):
        if size_out < size_in:
            start, end = row * size_in // size_out, -(-(row + 1) * size_in // size_out)
            matrix[row, start:end] = 1 / (end - start)
        else:
            at = max((row + 0.5) * size_in / size_out - 0.5, 0.0)
            low = min(int(at), size_in - 1)
            high = min(low + 1, size_in - 1)
            matrix[row, low] += 1 - (at - low)
            matrix[row, high] += at - low
    return matrix.to(device, dtype)


def projections(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """A 1x1 convolution a pair of features, from the student's channels to the teacher's."""
    pairs = zip(student_channels, teacher_channels, strict=True)
    return nn.ModuleList(nn.Conv2d(student, teacher, 1, bias=False) for student, teacher in pairs)


def critic(classes: int) -> nn.Module:
    """The critic of holistic distillation for this many classes."""
    return Critic(classes)


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """The function's value; what it needs for the backward pass is computed again there instead of kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
