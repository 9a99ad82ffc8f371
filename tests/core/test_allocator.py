"""Memory that was freed is used again without the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from dsd_core.allocator import keep_freed_memory

if {keeping}:
    keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * 4 * 2**24))
"""


def share_mapped_anew(keeping: bool) -> float:
    """Share of the bytes of tensors made in a row that the kernel had to give, in a process of its own."""
    program = [sys.executable, "-c", FAULTS.format(keeping=keeping)]
    return float(subprocess.run(program, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc whose allocator could be told")
def test_a_tensor_made_after_one_like_it_was_freed_takes_no_new_pages() -> None:
    assert share_mapped_anew(keeping=True) < 0.2
