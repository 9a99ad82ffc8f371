"""JobSpec: everything a job needs to know, in one frozen pydantic model that is also the body of `POST /api/v1/jobs`.

A spec is complete: every default is filled when it is parsed, so nobody downstream supplies one. Unknown fields are
refused. Names are keys of closed tables (networks, losses, datasets); no field is ever imported, evaluated or
unpickled. Sizes are (height, width) in pixels. This module imports neither torch nor numpy, and touches no file but in
`load_spec`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, Union

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dsd_core.distill.loss import LossSpec
from dsd_core.distill.losses import LOSSES
from dsd_core.errors import SpecError, unknown
from dsd_core.parts import Fraction, Part, Seed, Size, Slug, Text, alternatives
from dsd_core.yaml_text import parse_yaml

# --- networks ---------------------------------------------------------------------------------------------------------

OWN_NETWORKS = {
    "espnet": "ESPNet (Mehta et al., ECCV 2018), alpha2 = p, alpha3 = q",
    "espnet_c": "ESPNet-C, the encoder of ESPNet alone",
    "enet": "ENet (Paszke et al., 2016)",
    "pspnet_r101": "PSPNet on ResNet-101 as SKD and IFVD have it, with an auxiliary head",
    "pspnet_r18": "PSPNet on ResNet-18 as SKD and IFVD have it, with an auxiliary head",
    "pspnet_r18_half": "pspnet_r18 with half the channels",
}
# torchvision's builders of segmentation networks, under their own names.
TORCHVISION_NETWORKS = {
    "fcn_resnet50": "FCN on ResNet-50, of torchvision",
    "fcn_resnet101": "FCN on ResNet-101, of torchvision",
    "deeplabv3_resnet50": "DeepLabV3 on ResNet-50, of torchvision",
    "deeplabv3_resnet101": "DeepLabV3 on ResNet-101, of torchvision",
    "deeplabv3_mobilenet_v3_large": "DeepLabV3 on MobileNetV3-Large, of torchvision",
    "lraspp_mobilenet_v3_large": "Lite R-ASPP on MobileNetV3-Large, of torchvision",
}
# segmentation-models-pytorch's class for each name; any of its encoders goes with each, timm's as `tu-NAME`.
DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
}
Option = Annotated[
    bool | int | float | str | list[int] | None,
    alternatives("give a number, text, true, false, null or a list of whole numbers."),
]


class Preprocess(Part):
    """What a network wants done to 8-bit RGB pixels: reorder, then `(x - mean) / std` on the 0..255 scale, per
    channel."""

    order: Literal["RGB", "BGR"] = "RGB"
    """Order of the channels the network was trained with; mean and std are given in this order."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from each channel, on the 0..255 scale. The default is ImageNet's."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        58.395,
        57.12,
        57.375,
    )
    """Divides each channel, on the 0..255 scale. The default is ImageNet's."""


class NetworkSpec(Part):
    """A network by name: `espnet`, `fcn_resnet50`, or a decoder of segmentation-models-pytorch with an encoder, short
    `fpn:resnet18`."""

    name: str
    """One of the networks in `GET /catalog`."""
    encoder: str | None = None
    """For decoders: an encoder of segmentation-models-pytorch, or `tu-` and any timm model name."""
    encoder_weights: str | None = None
    """Pretrained weights of the encoder by their name in the zoo (`imagenet`, the only one for torchvision's networks);
    they are downloaded. None starts from random."""
    options: dict[str, Option] = Field(default={})
    """Further arguments of the network, such as `decoder_pyramid_channels`, or `p` and `q` of ESPNet."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [*OWN_NETWORKS, *TORCHVISION_NETWORKS, *DECODERS]
        if self.name not in known:
            raise ValueError(str(unknown("network", self.name, known)))
        if self.name in DECODERS and not self.encoder:
            raise ValueError(f"network {self.name!r} needs an encoder, for example {self.name}:resnet18.")
        if self.name not in DECODERS and self.encoder:
            raise ValueError(f"network {self.name!r} takes no encoder.")
        return self

    def __str__(self) -> str:
        return f"{self.name}:{self.encoder}" if self.encoder else self.name


def _from_short_form(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, _, encoder = value.partition(":")
    return {"name": name, "encoder": encoder or None}


Network = Annotated[NetworkSpec, BeforeValidator(_from_short_form, json_schema_input_type=NetworkSpec | str)]
_network: TypeAdapter[NetworkSpec] = TypeAdapter(Network)


def network_spec(value: Any) -> NetworkSpec:
    """A network from its fields or its short form. Raises pydantic.ValidationError, a ValueError."""
    return _network.validate_python(value)


class Student(Part):
    """The network that is trained."""

    network: Network
    """Its architecture."""
    preprocess: Preprocess = Preprocess()
    """What it wants done to the pixels; becomes part of the exported student."""
    weights: Text | None = None
    """A safetensors file to start from. None starts from random (or encoder_weights)."""
    encoder_file: Text | None = None
    """A safetensors file of a backbone, such as one trained on ImageNet, for the encoder alone; prefixes of names are
    found by comparing names and shapes."""
    weights_share: Fraction = 1.0
    """The least share of tensors that the file must fill, by name and shape, of the network or of its encoder. 1 with
    `weights` wants exactly the network's tensors; below 1, what does not fit is left out and reported."""
    taps: tuple[str, ...] = ()
    """Modules whose outputs are compared, shallow to deep; `name:3` takes item 3 of a module that returns a list.
    Empty takes the network's default: one per stage."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.encoder_file is not None:
            raise ValueError("give at most one of `weights` (the whole network) and `encoder_file` (its encoder).")
        if self.encoder_file is not None and self.network.encoder_weights is not None:
            raise ValueError("`encoder_file` takes the place of `network.encoder_weights`; leave one of them out.")
        return self


TEACHER_SOURCES = ("weights", "model", "onnx", "zoo")


class Teacher(Part):
    """The network that teaches, frozen, from exactly one source: `weights`, `model`, `onnx` or `zoo`."""

    weights: Text | None = None
    """A safetensors file on the workers' machine. A `.json` beside it of the same name may say network and
    preprocessing."""
    model: Text | None = None
    """A registered model: `name`, `name@alias` or `name/version`. `name` alone means alias latest-good."""
    onnx: Text | None = None
    """An ONNX file on the workers' machine, exported by any framework; its logits or class probabilities teach."""
    output: Text | None = None
    """With `onnx`: the tensor that holds the logits. None takes the first output of four dimensions."""
    zoo: Text | None = None
    """A segmentation network with published weights, by its name in `GET /catalog`; they are downloaded."""
    network: Network | None = None
    """Its architecture, unless the `.json` beside the weights or the registered model says it."""
    preprocess: Preprocess | None = None
    """What it wants done to the pixels, unless the `.json` beside the weights or the registered model says it."""
    taps: tuple[str, ...] = ()
    """As the student's, in the same number and order; with `onnx` names of tensors in the graph."""
    floor: Fraction = 0.1
    """The least mIoU on the validation split; below it the job fails before training, for the preprocessing is then
    wrong."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [source for source in TEACHER_SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of `weights` (a safetensors file), `model` (a registered model), `onnx` (an ONNX "
                "file) and `zoo` (a published network)."
            )
        if self.output is not None and self.onnx is None:
            raise ValueError("`output` names a tensor of an ONNX graph; give it with `onnx`.")
        if self.network is not None and given[0] in ("onnx", "zoo"):
            raise ValueError(f"`{given[0]}` brings its network; leave `network` out.")
        if self.zoo is not None and self.preprocess is not None:
            raise ValueError("`zoo` brings its preprocessing; leave `preprocess` out.")
        return self


# --- losses -----------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    Loss = LossSpec
else:
    Loss = Annotated[Union[tuple(LOSSES.values())], Field(discriminator="loss")]  # noqa: UP007 - the members are found
SYNONYMS = {"pixel_similarity": "psd", "category_similarity": "csd"}


_CE: dict[str, Any] = {"loss": "ce"}
_AT_HEAD = {"logits_at": "head"}
# The weights were chosen by `make compare`; docs/methods.md says how.
PRESETS: dict[str, list[dict[str, Any]]] = {
    "plain": [_CE],
    "dsd": [_CE, {"loss": "psd"}, {"loss": "csd", "weight": 10.0, **_AT_HEAD}],
    "dsd_kd": [
        _CE,
        {"loss": "psd", "weight": 3.0},
        {"loss": "csd", "weight": 30.0, **_AT_HEAD},
        {"loss": "kd", "weight": 3.0, **_AT_HEAD},
    ],
    "dsd_cwd": [
        _CE,
        {"loss": "psd", "weight": 0.3},
        {"loss": "csd", "weight": 3.0, **_AT_HEAD},
        {"loss": "cwd", **_AT_HEAD},
    ],
    "kd": [_CE, {"loss": "kd", **_AT_HEAD}],
    "at": [_CE, {"loss": "at", "weight": 10.0}],
    "fitnet": [_CE, {"loss": "fitnet"}],
    "skd": [_CE, {"loss": "skd_pairwise", "weight": 3.0, "pool": 2}],
    "ifvd": [_CE, {"loss": "ifvd", "weight": 30.0}],
    "cwd": [_CE, {"loss": "cwd", **_AT_HEAD}],
    "cirkd": [_CE, {"loss": "cirkd", "weight": 3.0}],
    "dist": [_CE, {"loss": "dist", "weight": 0.3, **_AT_HEAD}],
    # The constants of the public re-implementation (winycg/CIRKD, losses/dsd.py); docs/methods.md has the rest.
    "cirkd_dsd": [
        _CE,
        {"loss": "psd", "weight": 1000.0, "pairs": "all", "reduction": "mean", "layers": "head"},
        {"loss": "csd", "weight": 10.0, "tau": 4.0, "softmax": "spatial", "normalize": False, "pool": 2, **_AT_HEAD},
    ],
}


DEFAULT_PRESET = "cwd"
"""Of a distill job: the preset with the best mean mIoU in the comparison on CamVid."""


def _expand_preset(value: Any) -> Any:
    if not isinstance(value, str):
        return [_by_its_name(loss) for loss in value] if isinstance(value, list | tuple) else value
    if value not in PRESETS:
        raise ValueError(str(unknown("loss preset", value, PRESETS)))
    return PRESETS[value]


def _refuse_weights_without_leader(losses: tuple[Loss, ...], which: str) -> None:
    numbers = [loss.weight for loss in losses if loss.weight != "auto"]
    if len(numbers) < len(losses) and not (numbers and numbers[0]):
        raise ValueError(
            f"`weight: auto` follows the first term whose weight is a number, and {which} have none, or one of 0; give "
            "one a number above 0."
        )


def _by_its_name(loss: Any) -> Any:
    name = loss.get("loss") if isinstance(loss, dict) else None
    return {**loss, "loss": SYNONYMS[name]} if isinstance(name, str) and name in SYNONYMS else loss


Losses = Annotated[tuple[Loss, ...], BeforeValidator(_expand_preset, json_schema_input_type=tuple[Loss, ...] | str)]
_losses: TypeAdapter[tuple[Loss, ...]] = TypeAdapter(Losses)


def preset_losses(name: str) -> tuple[Loss, ...]:
    """The losses of a preset. Raises pydantic.ValidationError, a ValueError, for a name that is none."""
    return _losses.validate_python(name)


# --- data, training, evaluation ---------------------------------------------------------------------------------------


class DatasetSpec(Part):
    """Images, mostly with labels, split into train and val."""

    name: Literal[
        "camvid",
        "cityscapes",
        "ade20k",
        "voc2012",
        "voc2012_aug",
        "coco_stuff",
        "folder",
        "manifest",
        "streets",
    ]
    """How the files lie and what they mean: public datasets as they unpack, `folder` and `manifest` for your own,
    `streets` for generated scenes. `GET /catalog` and docs/data-and-models.md say the layout of each."""
    root: Text | None = None
    """The dataset's folder on the workers' machine, absolute; for `manifest` also the file. `streets` takes none."""
    size: Size | None = None
    """Every image is resized to this (height, width): bilinear, labels nearest. None keeps each image's own size;
    where sizes differ, training then needs `train.augment.crop`."""

    @model_validator(mode="after")
    def _root_where_needed(self) -> Self:
        if self.name == "streets" and self.root is not None:
            raise ValueError("dataset 'streets' is generated and takes no root.")
        if self.name != "streets" and self.root is None:
            raise ValueError(f"dataset {self.name!r} needs `root`, the folder that holds it.")
        return self


class Augment(Part):
    """How a training view is drawn from an image: scale, crop, flip, colour; every draw is a function of (seed,
    epoch, image)."""

    crop: Size | None = None
    """Size of the view. None takes the image's size."""
    scale: tuple[Annotated[float, Field(gt=0.1, le=4)], Annotated[float, Field(gt=0.1, le=4)]] = (0.75, 1.75)
    """The image is scaled by a factor from this range (uniform in its logarithm) before the crop; the void around a
    small image is ignored."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    brightness: Fraction = 0.2
    """Brightness, contrast and saturation are each multiplied by 1 +- up to this."""
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be (low, high) with low <= high.")
        return self


class Training(Part):
    """The schedule of one phase; the baseline without a teacher gets the same."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 40
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-2
    momentum: Fraction = 0.9
    """For sgd."""
    schedule: Literal["poly", "one_cycle"] = "poly"
    """`poly`: lr * (1 - step / steps) ** power after a linear warm-up. `one_cycle`: up and down again (Smith 2018)."""
    power: Annotated[float, Field(gt=0, le=10)] = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """For poly."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """The gradient's norm is clipped to this."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights; evaluation and export then use the average."""
    amp: Literal["auto", "off"] = "auto"
    """`auto`: bfloat16 (or float16 with loss scaling) on CUDA, full precision elsewhere."""
    channels_last: bool = True
    augment: Augment = Augment()
    seed: Seed = 0
    loaders: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the training process."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of torch; None takes all cores. Results are bit-identical only for the same number."""
    log_every: Annotated[int, Field(ge=1)] = 20
    """Steps between progress events; gradient norms of the terms are measured on those steps."""
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 120.0
    """Seconds between checkpoints; 0 writes one each step."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the student: the last, or the best on the validation split (an optimistic choice)."""


class Evaluation(Part):
    """Scoring on the validation split."""

    every_epochs: Annotated[int, Field(ge=1)] = 10
    batch: Annotated[int, Field(ge=1, le=4096)] = 4
    mode: Literal["whole", "sliding"] = "whole"
    """`whole`: the network sees the image at once. `sliding`: windows, whose logits are averaged where they overlap."""
    window: Size | None = None
    """For sliding: (height, width) of a window."""
    stride: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(None, validate_default=True)
    """For sliding: from one window to the next, (down, right). None takes two thirds of the window."""
    scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=8)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """The image is seen at each of these scales, and the class probabilities are averaged at the image's size."""
    flip: bool = False
    """The image is also seen mirrored, and the class probabilities are averaged."""
    boundary: bool = True
    """Also compute the boundary IoU (Cheng et al. 2021); at 360x480 it takes 7 ms of a CPU core an image."""
    pictures: Annotated[int, Field(ge=0, le=64)] = 4
    """Validation images drawn with label, teacher, student and difference at each evaluation."""
    floor: Fraction = 0.0
    """The least mIoU of the student for the alias latest-good to move to it."""

    @field_validator("stride")
    @classmethod
    def _stride_leaves_no_gap(cls, stride: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        window: Size | None = info.data.get("window")
        if window is None or stride is None:
            return stride if window is None else (-(-2 * window[0] // 3), -(-2 * window[1] // 3))
        if stride[0] > window[0] or stride[1] > window[1]:
            raise ValueError(
                f"a stride beyond the window {window[0]}x{window[1]} leaves pixels out; give at most that."
            )
        return stride

    @model_validator(mode="after")
    def _window_for_sliding(self) -> Self:
        if self.mode == "sliding" and self.window is None:
            raise ValueError("mode 'sliding' needs `window`, such as [512, 512].")
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("`window` and `stride` are for mode: sliding.")
        return self


class JobSpec(Part):
    """A job: train a student on a dataset, with a teacher (`distill`) or without (`train`)."""

    kind: Literal["distill", "train"] = "distill"
    """`distill` needs a teacher; `train` has none, and its result can teach."""
    name: Slug
    """The registered model's name, and how people call the job: lower-case letters, digits, `.`, `_`, `-`."""
    dataset: DatasetSpec
    student: Student
    teacher: Teacher | None = None
    losses: Losses = Field(default=DEFAULT_PRESET, validate_default=True)
    """A list of losses with weights, or the name of a preset. Default: `cwd` for distill, the winner of
    `benchmarks/results/camvid_losses.md`; `plain` for train."""
    train: Training = Training()
    evaluate: Evaluation = Evaluation()
    baseline: bool = False
    """Train the same student without a teacher first, same seed and schedule, and report the gain."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=32)] = ()
    """Train once with each of these in place of train.seed, and report mean and spread. The first one's student is
    exported. Empty: train.seed alone."""
    labels: dict[Slug, Annotated[str, Field(max_length=200)]] = Field(default={})
    """Free key: value pairs to find the job by."""
    max_runtime_s: Annotated[float, Field(gt=0)] | None = None
    """The job is ended as failed after this time of running."""

    @model_validator(mode="before")
    @classmethod
    def _default_losses(cls, value: Any) -> Any:
        if isinstance(value, dict) and "losses" not in value:
            return {**value, "losses": "plain" if value.get("kind") == "train" else DEFAULT_PRESET}
        return value

    @field_validator("losses")
    @classmethod
    def _losses_make_sense(cls, losses: tuple[Loss, ...]) -> tuple[Loss, ...]:
        names = [loss.term for loss in losses]
        if not names:
            raise ValueError(f"give at least one loss, or a preset: {', '.join(PRESETS)}.")
        if len(set(names)) != len(names) or "loss" in names or "total" in names:
            raise ValueError(f"each term needs a name of its own, got {', '.join(names)}; give one a `name`.")
        _refuse_weights_without_leader(losses, "the losses")
        return losses

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"each seed may stand once; {', '.join(map(str, twice))} stands more often.")
        return seeds

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        teaching = [loss.term for loss in self.losses if loss.uses_teacher]
        if self.kind == "distill" and self.teacher is None:
            raise ValueError("kind 'distill' needs a `teacher`; to train without one, say kind: train.")
        if self.kind == "train" and self.teacher is not None:
            raise ValueError("kind 'train' takes no `teacher`; say kind: distill.")
        if self.kind == "train" and teaching:
            raise ValueError(f"kind 'train' has no teacher for the losses {', '.join(teaching)}.")
        if self.baseline and all(loss.uses_teacher for loss in self.losses):
            raise ValueError("a baseline needs a loss without teacher, such as ce.")
        if self.baseline:
            alone = tuple(loss for loss in self.losses if not loss.uses_teacher)
            _refuse_weights_without_leader(alone, "the losses of the baseline")
        return self

    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_spec(data: Any) -> JobSpec:
    """Check a dictionary and fill its defaults. Raises SpecError that names every wrong field."""
    return _parsed(JobSpec, data, "The job specification is wrong")


def parse_evaluation(data: Any) -> Evaluation:
    """As `parse_spec`, for the part `evaluate` alone."""
    return _parsed(Evaluation, data, "The evaluation cannot be done so")


PartT = TypeVar("PartT", bound=Part)


def _parsed(part: type[PartT], data: Any, complaint: str) -> PartT:
    try:
        return part.model_validate(data)
    except ValidationError as error:
        problems = field_problems(error)
        listed = "; ".join(f"{p['field'] or '/'}: {p['message']}" for p in problems[:10])
        raise SpecError(f"{complaint}: {listed}", field=problems[0]["field"]) from error


def complaints(error: ValidationError) -> str:
    """What a pydantic error has against a value that stands alone, in one sentence a problem."""
    return " ".join(problem["message"] for problem in field_problems(error))


_QUOTED = re.compile(r"'([^']*)'")


def field_problems(error: ValidationError) -> list[dict[str, str]]:
    """Each wrong field of a pydantic error: its JSON pointer and what to do about it."""
    problems = []
    for item in error.errors(include_url=False):
        parts = [p for p in item["loc"] if p not in ("body", *LOSSES)]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"there is no such field. {_near_fields(parts)}".strip()
        elif item["type"] == "literal_error":
            message = _none_of(item["input"], _QUOTED.findall(item["ctx"]["expected"]))
        elif item["type"] == "union_tag_invalid":
            message, parts = str(unknown("loss", item["ctx"]["tag"], LOSSES)), [*parts, "loss"]
        elif item["type"] == "union_tag_not_found":
            message = f"say which `loss` it is: {', '.join(LOSSES)}."
        problems.append({"field": "".join(f"/{p}" for p in parts), "message": message, "type": item["type"]})
    return problems


def _near_fields(parts: list[Any]) -> str:
    parts_of_a_spec: tuple[type[Part], ...] = (
        *(JobSpec, DatasetSpec, Student, Teacher, NetworkSpec, Preprocess, Training, Augment, Evaluation),
        *LOSSES.values(),
    )
    known = {name for part in parts_of_a_spec for name in part.model_fields}
    return _near(str(parts[-1]), known) if parts else ""


def _none_of(value: Any, known: list[str]) -> str:
    return f"{str(value)[:100]!r} is none of {', '.join(known)}. {_near(str(value), known)}".strip()


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}?" if near else ""


def load_spec(path: Path) -> JobSpec:
    """Read a job file, YAML or JSON. Raises SpecError that names the file and every wrong field."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"There is no job file {path}.") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{path} must hold a mapping of fields, such as `name: my-student`.")
    try:
        return parse_spec(data)
    except SpecError as error:
        raise SpecError(f"{path}: {error.message}", field=error.field, hint=error.hint) from error


_MODEL = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]{0,79})(?:@(?P<alias>[A-Za-z0-9._-]+)|/(?P<version>\d+))?$")


def parse_model(text: str) -> tuple[str, str]:
    """Split `name`, `name@alias` or `name/version` (also with `models:/` before it) into name and alias or version.

    A bare name means alias `latest-good`. Raises SpecError.
    """
    found = _MODEL.match(text.removeprefix("models:/"))
    if not found:
        raise SpecError(f"{text!r} is not a model.", hint="Write name, name@alias or name/version.")
    return found["name"], found["version"] or found["alias"] or "latest-good"
