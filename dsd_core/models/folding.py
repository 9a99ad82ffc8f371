"""Batch normalisation at rest is a multiplication and an addition, which the convolution before it can do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def fold_norms(network: nn.Module, run: Callable[[], object], keep: Collection[nn.Module] = ()) -> list[nn.Conv2d]:
    """Let each convolution do the batch normalisation that alone takes its output; returns those that do.

    The network is at rest for good. `run` is a forward pass of it, watched to see what takes what. What the modules
    return stays the same up to rounding, but for the convolutions that took their norm in and what hands on their
    output; the modules of `keep`, whose outputs somebody looks at, are not among them, and none is altered inside.
    """
    seen = _watch(network, run, keep)
    places = {module: (parent, name) for parent in network.modules() for name, module in parent.named_children()}
    folded: list[nn.Conv2d] = []
    for norm, taken in seen.norms:
        conv = seen.made_by.get(id(taken))
        alone = seen.uses.get(id(taken)) == 1 and id(taken) not in seen.looked_at
        if conv is not None and alone and seen.calls[conv] == seen.calls[norm] == 1 and _fits(conv, norm, keep):
            _take_in(conv, norm)
            parent, name = places[norm]
            setattr(parent, name, FoldedNorm(norm))
            _spare_memory(norm, seen)
            folded.append(conv)
    return folded


class FoldedNorm(nn.Module):
    """What a norm does beside normalising, such as its activation; it keeps the norm for its number of parameters."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        for then in ("drop", "act"):
            module = getattr(self.norm, then, None)
            x = x if module is None else module(x)
        return x


@dataclass
class _Seen:
    """One forward pass; tensors by their ids, which `alive` keeps from being given out again."""

    alive: list[Any] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)
    made_by: dict[int, nn.Conv2d] = field(default_factory=dict)
    norms: list[tuple[nn.BatchNorm2d, Tensor]] = field(default_factory=list)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    looked_at: set[int] = field(default_factory=set)


def _watch(network: nn.Module, run: Callable[[], object], keep: Collection[nn.Module]) -> _Seen:
    seen = _Seen()

    class Uses(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            seen.alive += taken
            for tensor in taken:
                seen.uses[id(tensor)] = seen.uses.get(id(tensor), 0) + 1
            return function(*args, **(kwargs or {}))

    def before(module: nn.Module, inputs: Any) -> None:
        seen.calls[module] = seen.calls.get(module, 0) + 1
        if isinstance(module, nn.BatchNorm2d):
            seen.norms.append((module, inputs[0]))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.alive.append(output)
        if isinstance(module, nn.Conv2d):
            seen.made_by[id(output)] = module
        if module in keep:
            seen.looked_at |= {id(leaf) for leaf in tree_leaves(output)}

    hooks = [module.register_forward_pre_hook(before) for module in network.modules()]
    hooks += [module.register_forward_hook(after) for module in network.modules()]
    try:
        with torch.no_grad(), Uses():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _fits(conv: nn.Conv2d, norm: nn.BatchNorm2d, keep: Collection[nn.Module]) -> bool:
    """Whether both are of the plain kinds, or timm's norm with its activation."""
    plain = type(norm) is nn.BatchNorm2d or type(norm).__module__.startswith("timm.layers")
    at_rest = not norm.training and norm.running_mean is not None
    inside = set(norm.modules()) - {norm}
    return plain and at_rest and "weight" in conv._parameters and conv not in keep and not inside & set(keep)


def _spare_memory(norm: nn.BatchNorm2d, seen: _Seen) -> None:
    """Let the norm's activation write over the convolution's output, which nothing else takes: the time of a pass goes
    to memory that is not in a core's cache."""
    activation = getattr(norm, "act", None)
    if activation is not None and hasattr(activation, "inplace") and seen.calls.get(activation) == 1:
        activation.inplace = True


@torch.no_grad()
def _take_in(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = (0.0 if conv.bias is None else conv.bias.double()) - mean.double()
    bias = shift * scale + (0.0 if norm.bias is None else norm.bias.double())
    conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
    if conv.bias is not None:
        conv.bias.copy_(bias)
    else:  # no parameter, of which the network has as many as before
        del conv.bias
        conv.register_buffer("bias", bias.to(conv.weight.dtype))
