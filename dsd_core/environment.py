"""What the bits of a training depend on beside its spec, so that a resumed run can tell whether it still keeps them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from dsd_core import dist
from dsd_core.export import code_version

Environment = dict[str, str | int | bool]


def environment(device: torch.device) -> Environment:
    """The environment of this process as it is now: threads are set before this is asked."""
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": dist.world(),
        "deterministic": repeats_itself(device),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "code_version": code_version(),
    }


def changes(then: dict[str, Any] | None, now: Environment) -> list[str]:
    """What of the environment is not as it was when the checkpoint was written, a phrase each."""
    if then is None:
        return ["the checkpoint does not say what it was written on"]
    return [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]


def repeats_itself(device: torch.device) -> bool:
    """Whether the same computation gives the same bits on it: CUDA's fast kernels do not promise that."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the processor with the instructions that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
