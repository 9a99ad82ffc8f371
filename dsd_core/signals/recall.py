"""The teacher's signals of a batch: from the store where they lie there, else from the teacher, and then kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dsd_core.data.dataset import IGNORE, Dataset, Size
from dsd_core.data.loader import Batch, read_view
from dsd_core.data.views import View
from dsd_core.distill import ops
from dsd_core.distill.loss import Outlook
from dsd_core.distill.signals import Signal, Values
from dsd_core.distill.teaching import Teaching
from dsd_core.errors import StorageError
from dsd_core.inference import scaled
from dsd_core.phases import phase
from dsd_core.signals.entry import Entry
from dsd_core.signals.plan import Plan
from dsd_core.signals.record import Shapes, capacity, decode, encode, header_of
from dsd_core.signals.sampling import sample
from dsd_core.spec import Augment

Record = memoryview | bytes

REST = 0.05
"""Share of the records that may be filled at once, out of turn, so that the teacher can go."""
PIXELS_AT_ONCE = 1 << 21
"""Of eight images that the teacher takes at once on a CPU. Of larger ones two take as long each, and less memory."""


@dataclass
class Counts:
    """Views of a student whose signals were there and whose were not, and images or views that the teacher saw."""

    hits: int = 0
    misses: int = 0
    passes: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)


class Sight(NamedTuple):
    """What a student sees, and the number of the record that speaks of it."""

    number: int
    image: int
    view: View


class OnShift(Protocol):
    """A teacher that is in memory while it works."""

    def wake(self) -> Teaching: ...

    def rest(self) -> None: ...


@dataclass
class Recall:
    """Called with a batch, gives its signals.

    `shift` has the teacher, which leaves memory once the entry is complete. What is computed is always rounded as it
    would be kept, so that a run's losses do not depend on who filled the store. Without an entry, or with one that
    cannot be written any more, the teacher computes each time; `give_up` is told why once, and may raise instead.
    """

    plan: Plan
    dataset: Dataset
    augment: Augment
    classes: int
    device: torch.device
    entry: Entry | None
    shift: OnShift
    give_up: Callable[[StorageError], None]
    counts: Counts = field(default_factory=Counts)
    _complete: bool = False
    _since_looked: int = 0
    _looked_for: int = 0  # all records before this one were there or are being filled

    def __call__(self, batch: Batch) -> Outlook:
        numbers = [self._number(index, view) for index, view in zip(batch.indices, batch.views, strict=True)]
        found = self._loaded(numbers)
        self.counts.hits += sum(number in found for number in numbers)
        self.counts.misses += sum(number not in found for number in numbers)
        absent = [number for number in dict.fromkeys(numbers) if number not in found]
        if absent:
            found |= self._filled(absent, self._images_of(batch, numbers))
        elif not self._complete:
            self._fill_rest(len(batch))
        return Outlook(None, kept=self._values([found[number] for number in numbers], numbers, batch))

    def records_of(self, index: int) -> range:
        """Numbers of an image's records: one a scale, or one a view."""
        return range(index * self.plan.looks, (index + 1) * self.plan.looks)

    def _number(self, index: int, view: View) -> int:
        if self.plan.kind == "view":
            return self.records_of(index)[view.key[1]]
        nearest = min(range(len(self.plan.scales)), key=lambda at: _apart(self.plan.scales[at], view.factor))
        return self.records_of(index)[nearest]

    # --- records ------------------------------------------------------------------------------------------------------

    def _loaded(self, numbers: Sequence[int]) -> dict[int, Record]:
        if self.entry is None:
            return {}
        read = {number: self.entry.read(number) for number in dict.fromkeys(numbers)}
        return {number: record for number, record in read.items() if record is not None}

    def _filled(self, absent: list[int], given: dict[int, tuple[Tensor, Tensor]]) -> dict[int, Record]:
        """Records that were absent: computed and kept here, or by another process meanwhile; and more that are absent,
        so that the teacher has as many images as it takes at once. An image's records are filled together."""
        units = list(dict.fromkeys(number // self._unit for number in absent))
        needed = [number for unit in units for number in range(unit * self._unit, (unit + 1) * self._unit)]
        if self.entry is None:
            return dict(self._computed(needed, given))
        more = -len(units) % self._at_once * self._unit if self._at_once else 0
        found: dict[int, Record] = {}
        try:
            with self.entry.filling(needed, self._further(self.entry.records), more) as ours:
                for number, record in self._computed(ours, given):
                    found[number] = record
                    self.entry.write(number, record.ljust(self.entry.sizes[number], b"\0"))
        except StorageError as error:
            self.give_up(error)
            self.entry = None
        found |= self._loaded([number for number in needed if number not in found])
        unreadable = [number for number in needed if number not in found]
        return found | dict(self._computed(unreadable, given))

    def _further(self, records: int) -> Iterator[int]:
        """Numbers of records not looked for yet, each once. Absent ones fill up the teacher's last pass, which takes as
        long without them."""
        while self._looked_for < records:
            self._looked_for += 1
            yield self._looked_for - 1

    @property
    def _unit(self) -> int:
        """How many records are filled together."""
        return self.plan.looks if self.plan.kind == "image" else 1

    @cached_property
    def _at_once(self) -> int | None:
        """Images of a pass of the teacher on a CPU, where their number may decide which kernels compute them. Images
        that none of the same size might join go two by two."""
        if self.device.type != "cpu":
            return None
        several = self.plan.kind == "image" and len({self.dataset.size_of(i) for i in range(len(self.dataset))}) > 1
        crop = self.augment.crop if self.plan.kind == "view" else None
        largest = max(self.plan.scales) ** 2 if self.plan.kind == "image" else 1.0
        pixels = math.prod(crop or self.dataset.size_of(0)) * largest
        return 8 if not several and 8 * pixels <= PIXELS_AT_ONCE else 2

    def _fill_rest(self, batch: int) -> None:
        """Let the teacher go where the entry is complete, and complete it where little is missing: the images that an
        epoch leaves over, since its batches are full."""
        self._since_looked += 1
        if self.entry is None or self._since_looked % 16 != 1:
            return
        absent = self.entry.absent()
        if len(absent) > max(batch * self.plan.looks, REST * self.entry.records):
            return
        for start in range(0, len(absent), batch):
            self._filled(absent[start : start + batch], {})
        if self.entry is not None and self.entry.complete:
            self._complete = True
            self.shift.rest()

    # --- the teacher --------------------------------------------------------------------------------------------------

    def _images_of(self, batch: Batch, numbers: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Views of the batch by the number of their record, with the pixels that count; whole images are not in it."""
        if self.plan.kind == "image":
            return {}
        rows = {number: row for row, number in enumerate(numbers)}
        return {
            number: (batch.images_N3HW[row : row + 1], batch.valid_NHW[row : row + 1]) for number, row in rows.items()
        }

    def _computed(self, numbers: Sequence[int], given: dict[int, tuple[Tensor, Tensor]]) -> Iterator[tuple[int, bytes]]:
        """Each record by the teacher, those of one size of image at once."""
        if not numbers:
            return
        shown = [(number, *(given.get(number) or self._shown(number))) for number in numbers]
        for _, group in groupby(sorted(shown, key=lambda one: tuple(one[1].shape)), lambda one: tuple(one[1].shape)):
            some = list(group)
            # Channels are last in memory, as files and the batch have them: to put them there takes 2 % of a pass.
            images = torch.cat([image.permute(0, 2, 3, 1) for _, image, _ in some]).permute(0, 3, 1, 2).to(self.device)
            valid = torch.cat([pixels for _, _, pixels in some]).to(self.device)
            self.counts.passes += len(some)
            values = self._signals(images, valid, self._at_once)
            numbers = [number for number, _, _ in some]
            yield from zip(numbers, encode(values, top_k=self.plan.top_k), strict=True)

    def _signals(self, images_N3HW: Tensor, valid_NHW: Tensor, at_once: int | None = None) -> dict[Signal, Values]:
        """What a record of each image holds."""
        bases = tuple(dict.fromkeys(signal.base for signal in self.plan.kept))
        with phase("teacher"):
            outlook = Outlook(None, kept=self.shift.wake().signals(images_N3HW, bases, at_once=at_once))
        size, valid_on = (images_N3HW.shape[-2], images_N3HW.shape[-1]), partial(ops.valid_on, valid_NHW)
        return {signal: outlook.tell(signal, size, valid_on) for signal in self.plan.kept}

    def shapes(self, size: Size) -> Shapes:
        """Of the signals of an image of this size, found by a pass over a blank one."""
        blank = torch.zeros(1, 3, *size, dtype=torch.uint8, device=self.device)
        values = self._signals(blank, torch.ones(1, *size, dtype=torch.bool, device=self.device))
        return {signal: tuple(tuple(tensor.shape[1:]) for tensor in tensors) for signal, tensors in values.items()}

    def _shown(self, number: int) -> tuple[Tensor, Tensor]:
        """The image 1 x 3 x H x W that a record is of, and the pixels that count."""
        index, look = divmod(number, self.plan.looks)
        if self.plan.kind == "view":
            image, label, _ = read_view(self.dataset, index, self.augment, (self.plan.view_seed, look, index))
            return image.unsqueeze(0), (label != IGNORE).unsqueeze(0)
        image_HW3, _ = self.dataset.read(index)
        whole = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1).unsqueeze(0)
        image = scaled(whole, self.plan.scales[look])
        return image, torch.ones(image[:, 0].shape, dtype=torch.bool)

    # --- values of a batch --------------------------------------------------------------------------------------------

    def _values(self, records: list[Record], numbers: list[int], batch: Batch) -> dict[Signal, Values]:
        """Of records in the order of the batch; those of one shape at once."""
        alike: dict[bytes, list[int]] = {}
        for row, record in enumerate(records):
            alike.setdefault(header_of(record, self.plan.kept), []).append(row)
        parts: list[dict[Signal, Values]] = []
        for rows in alike.values():
            sights = [Sight(numbers[row], batch.indices[row], batch.views[row]) for row in rows]
            parts.append(self._values_of([records[row] for row in rows], sights, parts[0] if parts else None))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor(list(chain.from_iterable(alike.values())), device=self.device).argsort()
        return {
            signal: tuple(torch.cat(tensors)[order] for tensors in zip(*(part[signal] for part in parts), strict=True))
            for signal in self.plan.kept
        }

    def _values_of(
        self, records: list[Record], sights: list[Sight], like: dict[Signal, Values] | None
    ) -> dict[Signal, Values]:
        """Of records of one shape; on the grids of others, where they are to be `like` those."""
        found = decode(records, self.plan.kept, self.classes, top_k=self.plan.top_k)
        if self.plan.kind == "view":
            return {signal: tuple(self._moved(signal, x) for x in tensors) for signal, tensors in found.items()}
        first = sights[0]
        image = scaled_size(self.dataset.size_of(first.image), self.plan.scales[first.number % self.plan.looks])
        grids = {
            signal: [ops.grid_of(x) for x in like[signal]]
            if like is not None
            else [signal.grid(first.view.crop, ops.grid_of(x), image) for x in maps]
            for signal, maps in found.items()
        }
        return {signal: self._sampled(signal, maps, grids[signal], sights) for signal, maps in found.items()}

    def _moved(self, signal: Signal, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor if signal.kept == "ids" else tensor.float()

    def _sampled(self, signal: Signal, maps: Values, grids: Sequence[Size], sights: list[Sight]) -> Values:
        """The maps NCHW of a signal, sampled; those of one size, as of layers, at once."""
        views, images = [sight.view for sight in sights], [self.dataset.size_of(sight.image) for sight in sights]
        found: list[Tensor] = []
        for (shape, grid), several in groupby(
            zip(maps, grids, strict=True), lambda pair: (tuple(pair[0].shape[1:]), pair[1])
        ):
            group = [one for one, _ in several]
            together = group[0] if len(group) == 1 else torch.cat(group, dim=1)
            seen = sample(together, views, images, grid, ids=signal.kept == "ids", device=self.device)
            found += seen.split(shape[0], dim=1)
        return tuple(found)


def record_sizes(plan: Plan, dataset: Dataset, crop: Size | None, shapes: Shapes, probed: Size) -> list[int]:
    """Bytes of each record, where an image of the size `probed` has signals of these shapes."""
    if plan.kind == "view":
        size = crop or dataset.size
        return [capacity(shapes, probed, size, top_k=plan.top_k)] * (plan.views * len(dataset))
    looked = [scaled_size(dataset.size_of(index), scale) for index in range(len(dataset)) for scale in plan.scales]
    known = {size: capacity(shapes, probed, size, top_k=plan.top_k) for size in set(looked)}
    return [known[size] for size in looked]


def scaled_size(size: Size, scale: float) -> Size:
    """Height and width of an image that `scaled` gives."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _apart(one: float, other: float) -> float:
    """The ratio of the larger to the smaller."""
    return one / other if one > other else other / one
