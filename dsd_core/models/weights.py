"""Load a safetensors file into a network, and say what fitted.

A file and a network that differ are refused, unless a share below 1 is asked for: then what has the same name and
shape is loaded, and the rest of the network stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dsd_core.errors import WeightsError
from dsd_core.models.weights_header import shapes_in, wrapper_prefix

LISTED = 10
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How a file fits a network, by the network's names; `unexpected` are the file's."""

    path: Path
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Sentences: both have the tensor, in different shapes."""

    @property
    def share(self) -> float:
        """Of the network's tensors, how many the file fills."""
        needed = len(self.matched) + len(self.missing) + len(self.reshaped)
        return len(self.matched) / needed if needed else 0.0

    def __str__(self) -> str:
        needed = len(self.matched) + len(self.missing) + len(self.reshaped)
        parts = [f"{self.path.name}: matched {len(self.matched)} of {needed} tensors"]
        parts += [f"missing {_first(self.missing)}"] if self.missing else []
        parts += [f"of another shape {_first(self.reshaped)}"] if self.reshaped else []
        parts += [f"unexpected {_first(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts) + "."


def load_weights(module: nn.Module, path: Path, *, field: str, min_share: float = 1.0) -> Fit:
    """Fill the module from the file. float16 and bfloat16 are widened to the module's own type.

    `min_share` 1 wants exactly the module's tensors; below 1, that share of them, and others in the file are left out.
    Raises WeightsError that lists the first 10 tensors that do not fit; nothing is loaded then.
    """
    wanted = _shapes_of(module)
    fit = _compare(path, wanted, shapes_in(path, field=field))
    strict = min_share >= 1
    if fit.share < min_share or (strict and fit.unexpected):
        raise _misfit(fit, min_share, field)
    state = _read(path, set(wanted) if strict else set(fit.matched), field)
    module.load_state_dict(state, strict=strict)
    return fit


def load_encoder(network: nn.Module, path: Path, *, field: str, min_share: float = 1.0) -> Fit:
    """Fill the network's `encoder` from a file of a backbone, whatever stands before the names there and here.

    The prefixes are those under which most names and shapes agree; what else the file has, such as a classifier, is
    left out. Raises WeightsError where less than `min_share` of the encoder's tensors are filled.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise WeightsError("This network has no encoder.", field=field, hint="Give all its weights instead.")
    wanted, found = _shapes_of(encoder), shapes_in(path, field=field)
    theirs, ours = _best_prefixes(wanted, found)
    renamed = {ours + name.removeprefix(theirs): shape for name, shape in found.items() if name.startswith(theirs)}
    others = tuple(name for name in found if not name.startswith(theirs))
    fit = _compare(path, wanted, renamed)
    unexpected = (theirs + name.removeprefix(ours) for name in fit.unexpected)
    fit = Fit(path, fit.matched, fit.missing, (*unexpected, *others), fit.reshaped)
    if fit.share < min_share:
        raise _misfit(fit, min_share, field)
    there = {theirs + name.removeprefix(ours): name for name in fit.matched}
    state = _read(path, set(there), field)
    encoder.load_state_dict({there[name]: tensor for name, tensor in state.items()}, strict=False)
    return fit


def _best_prefixes(wanted: Shapes, found: Shapes) -> tuple[str, str]:
    """The prefix of the file's names and that of the network's which bring most tensors together; none where equal."""

    def agreeing(pair: tuple[str, str]) -> int:
        theirs, ours = pair
        return sum(
            wanted.get(ours + name.removeprefix(theirs)) == shape
            for name, shape in found.items()
            if name.startswith(theirs)
        )

    return max(((a, b) for a in _first_parts(found) for b in _first_parts(wanted)), key=agreeing)


def _first_parts(names: Shapes) -> list[str]:
    """No prefix, and the first part of every name with its point."""
    return ["", *dict.fromkeys(f"{name.partition('.')[0]}." for name in names)]


def _read(path: Path, wanted: set[str], field: str) -> dict[str, Tensor]:
    """The tensors of these names, without the prefix of wrappers. Raises WeightsError where one is not finite."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}", field=field, hint="Copy or export the file again."
        ) from error
    prefix = wrapper_prefix(state)
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f"{path} holds NaN or infinity in {len(broken)} tensors: {', '.join(broken[:LISTED])}.",
            field=field,
            hint="The training that wrote it diverged; take an earlier file.",
        )
    return state


def _shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _compare(path: Path, wanted: Shapes, found: Shapes) -> Fit:
    # Older files lack this counter, which nothing here reads; torch fills it in.
    needed = [name for name in wanted if name in found or not name.endswith(".num_batches_tracked")]
    reshaped = {
        name: f"{name} is {found[name]} in the file and {wanted[name]} in the network"
        for name in needed
        if name in found and found[name] != wanted[name]
    }
    return Fit(
        path,
        matched=tuple(name for name in needed if name in found and name not in reshaped),
        missing=tuple(name for name in needed if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        reshaped=tuple(reshaped.values()),
    )


def _misfit(fit: Fit, min_share: float, field: str) -> WeightsError:
    problems = [
        *fit.reshaped,
        *(f"{name} is missing in the file" for name in fit.missing),
        *(f"{name} is not in the network" for name in fit.unexpected),
    ]
    share = f" (it fills {fit.share:.1%} of the tensors, {min_share:.1%} are asked for)" if min_share < 1 else ""
    return WeightsError(
        f"{fit.path} does not fit the network, {len(problems)} tensors differ{share}: {_first(problems, '; ')}.",
        field=field,
        hint="Name the network, encoder, options and number of classes that the file was made with.",
    )


def _first(items: tuple[str, ...] | list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return separator.join(items[:LISTED]) + more
