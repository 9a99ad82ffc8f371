"""A teacher's depthwise convolutions pad as TensorFlow does without a copy of their input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn
from torch.profiler import profile

from dsd_core.models.same_padding import pad_in_kernels

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))
SPANS = st.tuples(st.integers(1, 6), st.integers(1, 6))
STRIDES = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(size=SIDES, kernel=SPANS, stride=STRIDES)
def test_values_are_those_of_timm_at_any_size_kernel_and_stride(size, kernel, stride) -> None:
    torch.manual_seed(0)
    conv, images = Conv2dSame(3, 6, kernel, stride=stride, groups=3).double(), torch.rand(2, 3, *size).double()
    expected, parameters = conv(images), dict(conv.named_parameters())
    pad_in_kernels(nn.Sequential(conv))
    torch.testing.assert_close(conv(images), expected)
    assert dict(conv.named_parameters()).keys() == parameters.keys()


def padded(conv: nn.Module) -> bool:
    """Whether a copy of the images was made to pad them."""
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), profile(record_shapes=True) as seen:
        conv(images)
    copied = [event.input_shapes[0] for event in seen.events() if event.key == "aten::constant_pad_nd"]
    return [*images.shape] in copied


@pytest.mark.parametrize(
    ("options", "alters"), [({"groups": 3}, True), ({}, False), ({"groups": 3, "dilation": 2}, False)], ids=str
)
def test_depthwise_ones_that_are_not_dilated_make_no_padded_copy(options, alters) -> None:
    conv = Conv2dSame(3, 3, 3, stride=2, **options)
    assert padded(conv)
    pad_in_kernels(nn.Sequential(conv))
    assert padded(conv) is not alters
