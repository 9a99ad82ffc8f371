"""A network in an ONNX file, from whatever framework, as a module whose inner tensors can be tapped by name.

How images go in is read from the graph: layout NCHW or NHWC, float32, float16 or uint8, a fixed or a free batch and
size. What comes out becomes logits NKHW at the images' size; class probabilities become their logarithm, whose softmax
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models.onnx_file import SHAPE_OF, OnnxFile, read_onnx
from dsd_core.models.onnx_session import onnx_session

Size = tuple[int, int]
STAGES = (4, 8, 16, 32)
STRIDES = (1, 8, 16, 32, 64, 128)
LINEAR = ("Conv", "ConvTranspose", "BatchNormalization", "MatMul")  # no activations yet
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class ImageInput:
    """How the graph takes images; None where it takes any number or size."""

    name: str
    dtype: type[np.generic]
    channels_last: bool
    batch: int | None
    size: Size | None

    @property
    def takes_bytes(self) -> bool:
        """Whether it wants pixels as files have them, 0 to 255."""
        return self.dtype is np.uint8

    def arrange(self, images_N3HW: np.ndarray) -> np.ndarray:
        """The images as the graph wants them; for uint8 they are on the 0..255 scale."""
        if self.takes_bytes:
            images_N3HW = images_N3HW.round().clip(0, 255)
        moved = images_N3HW.transpose(0, 2, 3, 1) if self.channels_last else images_N3HW
        return np.ascontiguousarray(moved, dtype=self.dtype)


@dataclass(frozen=True)
class LogitsOutput:
    """Which tensor holds the logits, and how."""

    name: str
    channels_last: bool
    probabilities: bool


class OnnxTeacher(nn.Module):
    """Float images N3HW, prepared, to float32 logits NKHW of their size.

    Each tensor of `taps` passes through an Identity of its own, so that hooks meet it; those nobody hooks are not
    fetched. `tap_modules` maps the tensors' names to those modules.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        images: ImageInput,
        logits: LogitsOutput,
        *,
        stages: Sequence[str],
        head: tuple[str, str] | None,
        candidates: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.session, self.images, self.logits = session, images, logits
        self.stages, self.head, self.candidates = tuple(stages), head, tuple(candidates)
        names = dict.fromkeys([*self.stages, *(head or ())])
        self.taps = nn.ModuleList(nn.Identity() for _ in names)
        self.tap_modules = {name: f"taps.{index}" for index, name in enumerate(names)}

    def release(self) -> None:
        """Give the session's memory back; the teacher cannot run any more."""
        self.session = None

    def default_taps(self) -> tuple[str, ...]:
        """The tensors given as taps, else the last activation of each stage. Raises SpecError where none were found."""
        if len(self.stages) < 2:
            raise SpecError(
                "The graph's stages are not to be told from its shapes.",
                field="/teacher/taps",
                hint=f"Name two or more of its tensors, shallow to deep, such as {', '.join(self.candidates[:12])}.",
            )
        return self.stages

    def head_taps(self) -> tuple[str, str]:
        """The head's input and its logits. Raises SpecError where the logits do not come from a convolution."""
        if self.head is None:
            raise SpecError(
                f"{self.logits.name!r} does not come from a convolution, so the teacher's head is not known.",
                field="/teacher/taps",
                hint="Write the losses out with `logits_at: image` where they compare logits, and `layers: taps` or "
                "`on: taps` where they compare features, with tensors named in /teacher/taps.",
            )
        return self.head

    def refuse_other_size(self, size: Size) -> None:
        """Raise SpecError where the graph is made for images of another (height, width)."""
        fixed = self.images.size
        if fixed is not None and fixed != size:
            raise SpecError(
                f"The teacher's graph takes images of {fixed[0]}x{fixed[1]} only, and is given {size[0]}x{size[1]}.",
                field="/teacher/onnx",
                hint="Export it with free height and width, or set /dataset/size and /train/augment/crop to its size.",
            )

    def forward(self, images_N3HW: Tensor) -> Tensor:
        height, width = images_N3HW.shape[-2:]
        self.refuse_other_size((height, width))
        hooked = [name for name, module in self.tap_modules.items() if self.get_submodule(module)._forward_hooks]
        arrays = self._run(images_N3HW.float().cpu().numpy(), [self.logits.name, *hooked])
        logits, *features = (torch.from_numpy(array).to(images_N3HW.device).float() for array in arrays)
        for name, feature in zip(hooked, features, strict=True):
            self.get_submodule(self.tap_modules[name])(feature)
        if self.logits.channels_last:
            logits = logits.permute(0, 3, 1, 2)
        if self.logits.probabilities:
            logits = logits.clamp_min(torch.finfo(torch.float32).tiny).log()
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return logits

    def _run(self, images_N3HW: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        """The outputs for all images, run in batches of the size the graph takes; the last is filled up with zeros."""
        count, batch = len(images_N3HW), self.images.batch or len(images_N3HW)
        missing = -count % batch
        padded = np.concatenate([images_N3HW, np.zeros_like(images_N3HW[:1]).repeat(missing, axis=0)])
        parts = [
            self.session.run(outputs, {self.images.name: self.images.arrange(padded[first : first + batch])})
            for first in range(0, count, batch)
        ]
        return [np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True)]


def open_onnx_teacher(
    path: Path, classes: int, *, output: str | None = None, taps: Sequence[str] = ()
) -> tuple[OnnxTeacher, int, str]:
    """The network in the file, the stride its images are padded to, and the file's sha256.

    It is tried on a small image, or on one of its fixed size. Raises WeightsError for a file that cannot run, SpecError
    for names of tensors or a number of classes that do not fit.
    """
    file = read_onnx(path)
    file.refuse_unknown(taps, field="/teacher/taps")
    file.refuse_unknown([] if output is None else [output], field="/teacher/output")
    trial = onnx_session(
        path, serialized=file.with_outputs([] if output is None else [output], shapes=not taps), field="/teacher/onnx"
    )
    images = _image_input(path, trial)
    stride = _stride(path, trial, images)
    size = images.size or (2 * max(stride, 64), 3 * max(stride, 64))
    found = _try(trial, images, size)
    logits = _logits_output(file, found, classes, output)
    head = file.head(logits.name)
    shapes = {name: tuple(found[SHAPE_OF + name]) for name in file.activations if SHAPE_OF + name in found}
    ends = {name: shape for name, shape in shapes.items() if file.tensors[name].op_type not in LINEAR}
    stages = taps or stage_ends(ends, size, None if head is None else head[1])
    session = onnx_session(
        path,
        serialized=file.with_outputs([logits.name, *stages, *(head or ())]),
        cuda=torch.cuda.is_available(),
        field="/teacher/onnx",
    )
    candidates = [name for name, shape in shapes.items() if len(shape) == 4 and min(shape[2:]) > 1]
    return OnnxTeacher(session, images, logits, stages=stages, head=head, candidates=candidates), stride, file.digest


def stage_ends(shapes: dict[str, tuple[int, ...]], size: Size, logits: str | None) -> list[str]:
    """The last activation at each of 1/4 to 1/32 of the size before the graph goes coarser; at the coarsest, finer.

    Tensors of three channels are images, and `logits` is no feature.
    """
    grids = {(size[0] // stage, size[1] // stage): stage for stage in STAGES}
    stage_of = {
        name: grids[shape[2], shape[3]]
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[1] > 3 and name != logits and (shape[2], shape[3]) in grids
    }
    ends: dict[int, str] = {}
    for name, stage in stage_of.items():
        if not ends or stage >= max(ends):
            ends[stage] = name
        elif max(ends) == max(stage_of.values()):
            break
    return list(ends.values())


def _image_input(path: Path, session: onnxruntime.InferenceSession) -> ImageInput:
    """Raises WeightsError unless the graph has one input, of images."""
    inputs = session.get_inputs()
    listed = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
    shape = list(inputs[0].shape or []) if len(inputs) == 1 else []
    if len(shape) != 4 or inputs[0].type not in _DTYPES or 3 not in (shape[1], shape[3], 3 * isinstance(shape[1], str)):
        raise WeightsError(
            f"{path} takes {listed}, not images.",
            field="/teacher/onnx",
            hint="Export it with one input of four dimensions, N3HW or NHW3, of float32, float16 or uint8.",
        )
    channels_last = shape[1] != 3 and shape[3] == 3
    batch, *sides = (side if isinstance(side, int) and side > 0 else None for side in shape)
    height, width = sides[:2] if channels_last else sides[1:]
    size = None if height is None or width is None else (height, width)
    return ImageInput(inputs[0].name, _DTYPES[inputs[0].type], channels_last, batch, size)


def _stride(path: Path, session: onnxruntime.InferenceSession, images: ImageInput) -> int:
    """The least of STRIDES whose odd multiples the graph takes as height and width. Raises WeightsError where none."""
    reason: Exception | str = "its output is larger than the image"
    for stride in (1,) if images.size else STRIDES:
        times = (64 // stride) | 1
        size = images.size or (stride * times, stride * (times + 2))
        try:
            outputs = _try(session, images, size, shapes=False)
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            reason = error
            continue
        # Decoders that double the size overshoot where a side was rounded up on the way down.
        sides = [value.shape[2:] for value in outputs.values() if value.ndim == 4]
        if images.channels_last or all(high <= size[0] and wide <= size[1] for high, wide in sides):
            return stride
    raise WeightsError(
        f"{path} does not run on an image: {reason}",
        field="/teacher/onnx",
        hint="Check that it runs in onnxruntime on the CPU; a side that must be fixed must be fixed in the graph.",
    )


def _try(session: onnxruntime.InferenceSession, images: ImageInput, size: Size, shapes: bool = True) -> dict[str, Any]:
    """What the graph gives for random images of this size: its outputs, with or without the shapes."""
    wanted = [item.name for item in session.get_outputs() if shapes or not item.name.startswith(SHAPE_OF)]
    random = np.random.default_rng(0)
    normal = random.normal(size=(images.batch or 1, 3, *size)).astype(np.float32)
    given = images.arrange(127 + 64 * normal if images.takes_bytes else normal)
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # a size that the graph does not take is told by the exception alone
    arrays = session.run(wanted, {images.name: given}, quiet)
    return dict(zip(wanted, arrays, strict=True))


def _logits_output(file: OnnxFile, found: dict[str, Any], classes: int, named: str | None) -> LogitsOutput:
    """The output with a channel for each class, or one more. Raises SpecError where there is none."""
    outputs = {name: value for name, value in found.items() if not name.startswith(SHAPE_OF)}
    suitable = [name for name, value in outputs.items() if value.ndim == 4 and value.dtype.kind == "f"]
    name = named or next(iter(suitable), None)
    if name is None or name not in suitable:
        listed = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in outputs.items())
        inner = next(filter(None, map(file.before_argmax, outputs)), None)
        raise SpecError(
            f"{file.path} gives {listed}: no logits or probabilities of four dimensions.",
            field="/teacher/output" if named else "/teacher/onnx",
            hint=f"It ends in an argmax; give teacher.output: {inner!r}, which it is taken of."
            if inner
            else "Export the network up to its logits, or name the tensor that holds them in /teacher/output.",
        )
    shape = outputs[name].shape
    if not {shape[1], shape[3]} & {classes, classes + 1}:
        raise SpecError(
            f"{name!r} of {file.path} has {shape[1]} classes (shape {shape}), the dataset has {classes}.",
            field="/teacher/onnx",
            hint="Both must have the same classes in the same order; one more output, void, is left out.",
        )
    channels_last = shape[1] not in (classes, classes + 1)
    sums = outputs[name].sum(axis=3 if channels_last else 1, dtype=np.float64)
    probabilities = bool(outputs[name].min() >= 0 and np.abs(sums - 1).max() < 1e-2)
    return LogitsOutput(name, channels_last, probabilities)
