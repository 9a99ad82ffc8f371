"""From a plan to signals that can be recalled: the teacher in memory while it is needed, and its entry in the store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dsd_core.allocator import give_freed_memory_back
from dsd_core.data.dataset import Dataset
from dsd_core.distill.teaching import Names, Teaching
from dsd_core.errors import StorageError
from dsd_core.events import SignalsUse
from dsd_core.models.frozen import Frozen
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec
from dsd_core.optim import Precision
from dsd_core.signals.plan import Plan, expected, identity_of, key_of
from dsd_core.signals.recall import Counts, Recall, record_sizes, scaled_size
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec


class Shift:
    """A teacher that is in memory while it works. `load` brings its module back; `leave` is called before it rests."""

    def __init__(
        self, teacher: Frozen, layers: Names, load: Callable[[], torch.nn.Module], leave: Callable[[], None]
    ) -> None:
        self.teacher = teacher
        self.layers = layers
        self._load = load
        self._leave = leave
        self._teaching: Teaching | None = None
        self._resting = False

    def wake(self) -> Teaching:
        if self._resting:
            self.teacher.wake(self._load())
            self._resting = False
        if self._teaching is None:
            self._teaching = Teaching(self.teacher, self.layers)
        return self._teaching

    def rest(self) -> None:
        if self._resting:
            return
        self._leave()
        if self._teaching is not None:
            self._teaching.close()
        self._teaching, self._resting = None, True
        self.teacher.rest()
        give_freed_memory_back()


def open_recall(
    plan: Plan,
    spec: JobSpec,
    dataset: Dataset,
    shift: Shift,
    store: Store,
    *,
    teacher_digest: str,
    network: NetworkSpec | None,
    device: torch.device,
    tell: Callable[[str, bool], None],
) -> Recall:
    """Signals of the training images, from the store. `tell` gets sentences, True with a warning.

    Raises StorageError where the spec requires a store that cannot be had.
    """
    give_up = partial(_give_up, spec.store == "require", tell)
    recall = Recall(plan, dataset, spec.train.augment, len(dataset.classes), device, None, shift, give_up)
    crop = spec.train.augment.crop
    first = dataset.size_of(0)
    probed = scaled_size(first, plan.scales[0]) if plan.kind == "image" else crop or first
    sizes = record_sizes(plan, dataset, crop, recall.shapes(probed), probed)
    identity = identity_of(
        plan,
        spec,
        teacher=teacher_identity(shift.teacher, teacher_digest, network)
        | {"layers": {kind: list(names) for kind, names in sorted(shift.layers.items())}},
        dataset_fingerprint=dataset.fingerprint(),
        numerics=numerics(device, spec),
    )
    try:
        recall.entry = store.open(key_of(identity), sizes, _about(plan, spec, identity))
    except StorageError as error:
        give_up(error)
    tell(_outlook(plan, spec, recall, len(dataset), sum(sizes)), False)
    return recall


def use_of(recall: Recall, spec: JobSpec, counts: Counts) -> SignalsUse:
    """What a job came to with these counts of hits and passes."""
    images, entry = len(recall.dataset), recall.entry
    return SignalsUse(
        kind=recall.plan.kind,
        key=None if entry is None else entry.key,
        records=recall.plan.looks * images,
        bytes=0 if entry is None else entry.bytes,
        hits=counts.hits,
        misses=counts.misses,
        hit_rate=counts.hit_rate,
        teacher_passes=counts.passes,
        passes_in_loop=int(expected(recall.plan, spec, images, 0)["passes_in_loop"]),
    )


def teacher_identity(teacher: Frozen, digest: str, network: NetworkSpec | None) -> dict[str, Any]:
    """The teacher's file, what was made of it, and how it takes pixels."""
    segmenter = teacher.module
    assert isinstance(segmenter, Segmenter)
    return {
        "digest": digest,
        "network": None if network is None else network.model_dump(mode="json"),
        "mean": segmenter.mean.flatten().tolist(),
        "std": segmenter.std.flatten().tolist(),
        "reversed": segmenter.reverse_channels,
        "stride": segmenter.stride,
        "classes": segmenter.classes,
        "output": getattr(getattr(segmenter.network, "logits", None), "name", None),
    }


def numerics(device: torch.device, spec: JobSpec) -> str:
    """The kind of device and the type that networks compute with."""
    precision = Precision(device, spec.train)
    return f"{device.type} {precision.dtype if precision.enabled else torch.float32}"


def _about(plan: Plan, spec: JobSpec, identity: dict[str, Any]) -> dict[str, Any]:
    """What people are shown of an entry, and all that its key stands for."""
    assert spec.teacher is not None
    sources = (spec.teacher.weights, spec.teacher.model, spec.teacher.job, spec.teacher.onnx, spec.teacher.zoo)
    return {
        "kind": plan.kind,
        "teacher": next(source for source in sources if source is not None),
        "dataset": spec.dataset.name,
        "identity": identity,
    }


def _outlook(plan: Plan, spec: JobSpec, recall: Recall, images: int, size: int) -> str:
    """What the job will ask of the teacher and of the disk, before it starts."""
    records = plan.looks * images
    missing = records if recall.entry is None else recall.entry.missing()
    if recall.entry is None:
        missing = int(expected(plan, spec, images, 0)["passes_in_loop"])
    figures = expected(plan, spec, images, missing)
    what = {
        "image": f"each image whole at {len(plan.scales)} scale{'s' if len(plan.scales) > 1 else ''}",
        "view": f"{plan.views} views of each image",
    }
    return (
        f"The teacher's signals are kept of {what[plan.kind]}: {size / 1e6:,.1f} MB in {records:,} records, of which "
        f"{records - min(missing, records):,} are there. The teacher makes {int(figures['teacher_passes']):,} passes "
        f"in place of {int(figures['passes_in_loop']):,}; {figures['hit_rate']:.1%} of the views need none."
    )


def _give_up(required: bool, tell: Callable[[str, bool], None], error: StorageError) -> None:
    """Go on without a store, or not at all."""
    if required:
        raise StorageError(
            f"The teacher's signals cannot be kept, which the job requires: {error.message}",
            field="/store",
            hint=error.hint or "Free some of the disk, or set `store: auto`.",
        ) from error
    tell(f"The teacher's signals are computed each time, for they cannot be kept: {error.message}", True)
