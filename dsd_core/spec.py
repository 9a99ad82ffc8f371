"""JobSpec: everything a job needs to know, in one frozen pydantic model that is also the body of `POST /api/v1/jobs`.

A spec is complete: every default is filled when it is parsed, so nobody downstream supplies one. Unknown fields are
refused. Names are keys of closed tables (networks, losses, datasets); no field is ever imported, evaluated or
unpickled. Sizes are (height, width) in pixels. This module imports neither torch nor numpy, and touches no file but in
`load_spec`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from dsd_core.distill.presets import DEFAULT_PRESET, PRESETS, Loss, Losses
from dsd_core.errors import SpecError
from dsd_core.field_problems import field_problems
from dsd_core.network_spec import Network, NetworkSpec, Preprocess
from dsd_core.parts import Fraction, JobId, LabelText, Part, Seed, Size, Slug, Text, WebAddress
from dsd_core.yaml_text import parse_yaml

# --- student and teacher ----------------------------------------------------------------------------------------------


class Student(Part):
    """The network that is trained; of the kinds evaluate and export the one that was, from exactly one of `weights`,
    `model` and `job`."""

    network: Network | None = None
    """Its architecture. One that was trained may leave it to the `.json` beside the weights or the registered model."""
    preprocess: Preprocess | None = None
    """What it wants done to the pixels; becomes part of the exported student. Default: ImageNet's for one that is to be
    trained, else what the `.json` beside the weights or the registered model says."""
    weights: Text | None = None
    """A safetensors file: of the trained student, or to start training from. None starts from random (or
    encoder_weights)."""
    model: Text | None = None
    """To evaluate or export: a registered model, `name`, `name@alias` or `name/version`; `name` alone means alias
    latest-good."""
    job: JobId | None = None
    """To evaluate or export: the job that trains it, which is waited for."""
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
        if self.encoder_file is not None and self.network is not None and self.network.encoder_weights is not None:
            raise ValueError("`encoder_file` takes the place of `network.encoder_weights`; leave one of them out.")
        return self

    @property
    def architecture(self) -> tuple[NetworkSpec, Preprocess]:
        """Network and preprocessing of a student that is trained, whose spec always says them."""
        assert self.network is not None and self.preprocess is not None
        return self.network, self.preprocess


TEACHER_SOURCES = ("weights", "model", "job", "onnx", "zoo")
STUDENT_SOURCES = ("weights", "model", "job")


class Teacher(Part):
    """The network that teaches, frozen, from exactly one source: `weights`, `model`, `job`, `onnx` or `zoo`."""

    weights: Text | None = None
    """A safetensors file on the workers' machine. A `.json` beside it of the same name may say network and
    preprocessing."""
    model: Text | None = None
    """A registered model: `name`, `name@alias` or `name/version`. `name` alone means alias latest-good."""
    job: JobId | None = None
    """The job whose student teaches; it is waited for."""
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
                "give exactly one of `weights` (a safetensors file), `model` (a registered model), `job` (the job that "
                "trains it), `onnx` (an ONNX file) and `zoo` (a published network)."
            )
        if self.output is not None and self.onnx is None:
            raise ValueError("`output` names a tensor of an ONNX graph; give it with `onnx`.")
        if self.network is not None and given[0] in ("onnx", "zoo"):
            raise ValueError(f"`{given[0]}` brings its network; leave `network` out.")
        if self.zoo is not None and self.preprocess is not None:
            raise ValueError("`zoo` brings its preprocessing; leave `preprocess` out.")
        return self


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
    compile: Literal["off", "default", "cuda_graphs"] = "off"
    """torch.compile of the student and of a teacher in the loop: seconds to minutes at the start, and a faster step.
    `cuda_graphs` also replays whole passes on the GPU, whose every tensor then keeps its shape and place."""
    augment: Augment = Augment()
    seed: Seed = 0
    loaders: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 loads in the training process."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of torch; None takes all cores it may use. Results are bit-identical only for the same number."""
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    """The batch is computed in this many parts, one after the other, and its gradient is their sum: one optimiser step
    in the memory of a part. Terms are those of the whole batch; batch normalisation sees a part."""
    log_every: Annotated[int, Field(ge=1)] = 20
    """Steps between progress events; the weights do not depend on it."""
    norms_every: Annotated[int, Field(ge=1)] = 200
    """Steps between measurements of the gradient norm of each term, which take a backward pass a term; the first step
    and the last are measured too. Weights that are `auto` are found at those steps; others do not depend on it."""
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 120.0
    """Seconds between checkpoints; 0 writes one each step."""
    checkpoints_kept: Annotated[int, Field(ge=1, le=1000)] = 3
    """Of the newest checkpoints; each holds the best weights so far too. Two or more outlive damage to one."""
    resume: Literal["allow", "strict"] = "allow"
    """Where an interrupted run would not end with the bits of an uninterrupted one (other machine, threads or code, or
    CUDA): `allow` goes on and says so, `strict` ends the job."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the student: the last, or the best on the validation split (an optimistic choice)."""

    @field_validator("accumulate")
    @classmethod
    def _parts_have_images(cls, accumulate: int, info: ValidationInfo) -> int:
        batch: int = info.data.get("batch", accumulate)
        if accumulate > batch:
            raise ValueError(f"give at most {batch}, the images of a batch, so that each part has one.")
        return accumulate


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


TRAINING_KINDS = ("distill", "train")


def _refuse_weights_without_leader(losses: tuple[Loss, ...], which: str) -> None:
    numbers = [loss.weight for loss in losses if loss.weight != "auto"]
    if len(numbers) < len(losses) and not (numbers and numbers[0]):
        raise ValueError(
            f"`weight: auto` follows the first term whose weight is a number, and {which} have none, or one of 0; give "
            "one a number above 0."
        )


class Export(Part):
    """How the student's files are written."""

    precision: Literal["float32", "float16"] = "float32"
    """Of the weights in `model.onnx`. `float16` halves the file; the graph still computes in float32. The weights in
    `model.safetensors` are always as they were trained."""


class Resources(Part):
    """What the job wants of the worker that runs it; a job waits until there is such a worker."""

    device: Literal["any", "cpu", "cuda"] = "any"
    """`any` takes whatever the worker has."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes on one host, one on each device; each gets its share of every batch."""
    memory_gib: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """The least memory of the device, or of the host for a job on the CPU, in GiB. There it is also the most that the
    job may take: one that takes more is ended."""
    labels: dict[Slug, LabelText] = Field(default={})
    """Each must equal the worker's label of that name (`DSD_WORKER_LABELS`)."""


_NOT_TRAINED_BY: dict[str, Any] = {
    **dict.fromkeys(("name", "labels", "max_runtime_s", "priority", "group", "needs", "webhook", "export"), True),
    "store": True,
    "resources": {"device", "memory_gib", "labels"},
    "train": {"log_every", "checkpoints_kept", "resume"},
}
"""Fields that say how a job is found, queued and placed, and how its student is written, not how it is trained."""


Kind = Literal["distill", "train", "evaluate", "export"]


class JobSpec(Part):
    """A job: train a student on a dataset, with a teacher (`distill`) or without (`train`), or score one that was
    trained (`evaluate`), or write its files anew (`export`)."""

    kind: Kind = "distill"
    """`distill` needs a teacher; `train` has none, and its result can teach. `evaluate` scores a trained student on the
    validation split and registers nothing; `export` scores it, writes its files and registers them as a version."""
    name: Slug
    """The registered model's name, and how people call the job: lower-case letters, digits, `.`, `_`, `-`."""
    dataset: DatasetSpec
    student: Student
    teacher: Teacher | None = None
    """Of kind: distill alone."""
    losses: Losses = Field(default=DEFAULT_PRESET, validate_default=True)
    """A list of losses with weights, or the name of a preset. Default: `cwd` for distill, the winner of
    `benchmarks/results/camvid_losses.md`; `plain` for train; none for kinds that train nothing."""
    train: Training = Training()
    evaluate: Evaluation = Evaluation()
    export: Export = Export()
    baseline: bool = False
    """Train the same student without a teacher first, same seed and schedule, and report the gain."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=32)] = ()
    """Train once with each of these in place of train.seed, and report mean and spread. The first one's student is
    exported. Empty: train.seed alone."""
    signals: Literal["auto", "off", "image", "view"] = "auto"
    """How the teacher's part is kept. `image`: it sees every image once, whole, and what losses need of it is sampled
    for each view. `view`: exact, on a fixed set of `views`. `off`: it sees every view of every epoch. `auto`: image
    where every loss can do with it and the teacher is spared work, else off."""
    views: Annotated[int, Field(ge=1, le=10_000)] = 8
    """With signals: view, how many views are drawn of each image; epoch e shows view e modulo this."""
    view_seed: Seed = 0
    """With signals: view, what the views are drawn from, in place of train.seed: so all seeds share them."""
    scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=8)], ...], Field(min_length=1, max_length=8)] = (1.0,)
    """With signals: image, the scales at which the teacher sees each image; a view takes the one nearest its own."""
    top_k: Annotated[int, Field(ge=1, le=255)] | None = None
    """Of kept logits, the largest of each position; the others share what is left of the probability. None keeps
    all."""
    store: Literal["auto", "require"] = "auto"
    """What happens where signals cannot be kept, as on a full disk. `auto`: the teacher computes them each time.
    `require`: the job fails."""
    labels: dict[Slug, LabelText] = Field(default={})
    """Free key: value pairs to find the job by."""
    max_runtime_s: Annotated[float, Field(gt=0)] | None = None
    """The job is ended as failed after this time of running."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Among the jobs that wait in a group, the one with the highest number runs first, then the oldest."""
    group: Slug = "default"
    """Groups share the workers fairly, however many jobs each has in the queue."""
    needs: Annotated[tuple[JobId, ...], Field(max_length=100)] = ()
    """Ids of jobs that must succeed before this one starts; where one fails or is cancelled, this one fails. Those of
    `teacher.job` and `student.job` are waited for in any case."""
    webhook: WebAddress | None = None
    """Where the service posts what became of the job when it ends; the operator says which hosts it may call."""
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        trains = value.get("kind", "distill") in TRAINING_KINDS
        preset = DEFAULT_PRESET if value.get("kind", "distill") == "distill" else "plain" if trains else []
        student = value.get("student")
        if trains and isinstance(student, dict) and student.get("preprocess") is None:
            value = {**value, "student": {**student, "preprocess": {}}}
        return value if "losses" in value else {**value, "losses": preset}

    @field_validator("losses")
    @classmethod
    def _losses_make_sense(cls, losses: tuple[Loss, ...], info: ValidationInfo) -> tuple[Loss, ...]:
        names = [loss.term for loss in losses]
        if not names and info.data.get("kind") in TRAINING_KINDS:
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
        if self.trains:
            self._refuse_untrainable()
        else:
            self._refuse_training()
        return self

    def _refuse_untrainable(self) -> None:
        teaching = [loss.term for loss in self.losses if loss.uses_teacher]
        if self.kind == "distill" and self.teacher is None:
            raise ValueError("kind 'distill' needs a `teacher`; to train without one, say kind: train.")
        if self.kind == "train" and self.teacher is not None:
            raise ValueError("kind 'train' takes no `teacher`; say kind: distill.")
        if self.kind == "train" and teaching:
            raise ValueError(f"kind 'train' has no teacher for the losses {', '.join(teaching)}.")
        if self.student.network is None:
            raise ValueError(f"kind {self.kind!r} needs `student.network`, such as fpn:resnet18.")
        if self.student.model is not None or self.student.job is not None:
            raise ValueError(
                "`student.model` and `student.job` are for kind: evaluate and kind: export; training starts from "
                "`student.weights`, from `student.encoder_file` or from random."
            )
        counting = [loss.term for loss in self.losses if loss.counts_by_teacher]
        if counting and self.train.accumulate > 1:
            raise ValueError(
                f"how many pixels {', '.join(counting)} is a mean over is not known before the teacher has seen the "
                "whole batch; leave out its `confidence` and `class_weights`, or train.accumulate."
            )
        if self.baseline and all(loss.uses_teacher for loss in self.losses):
            raise ValueError("a baseline needs a loss without teacher, such as ce.")
        if self.baseline:
            alone = tuple(loss for loss in self.losses if not loss.uses_teacher)
            _refuse_weights_without_leader(alone, "the losses of the baseline")

    def _refuse_training(self) -> None:
        given = [source for source in STUDENT_SOURCES if getattr(self.student, source) is not None]
        if len(given) != 1:
            raise ValueError(
                f"kind {self.kind!r} needs exactly one of `student.weights` (a safetensors file), `student.model` (a "
                "registered model) and `student.job` (the job that trains it)."
            )
        unread = {
            "teacher": self.teacher is not None,
            "losses": bool(self.losses),
            "baseline": self.baseline,
            "seeds": bool(self.seeds),
            "train (but for train.threads)": self.train != Training(threads=self.train.threads),
            "student.encoder_file": self.student.encoder_file is not None,
            "student.weights_share": self.student.weights_share != 1.0,
            "student.taps": bool(self.student.taps),
            "export": self.kind == "evaluate" and self.export != Export(),
            "resources.processes": self.resources.processes > 1,
        }
        named = [name for name, is_given in unread.items() if is_given]
        if named:
            raise ValueError(f"kind {self.kind!r} trains nothing and does not read {', '.join(named)}; leave that out.")

    @model_validator(mode="after")
    def _signals_are_read(self) -> Self:
        of_view, of_image = ("views", "view_seed"), ("scales",)
        read = {"off": (), "auto": of_image, "image": of_image, "view": of_view}[self.signals] if self.teacher else ()
        kept = ("top_k", "store") if self.teacher is not None and self.signals != "off" else ()
        asked = ("signals",) if self.teacher is not None else ()
        fields = ("signals", *of_view, *of_image, "top_k", "store")
        unread = [
            name
            for name in fields
            if name not in (*asked, *read, *kept) and getattr(self, name) != type(self).model_fields[name].default
        ]
        if unread:
            why = f"with `signals: {self.signals}`" if self.teacher is not None else f"by kind {self.kind!r}"
            raise ValueError(
                f"{', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not read {why}; `views` and `view_seed` go "
                "with `signals: view`, `scales` with `signals: image`, and none of them without a teacher."
            )
        return self

    @property
    def trains(self) -> bool:
        return self.kind in TRAINING_KINDS

    def needed_jobs(self) -> tuple[str, ...]:
        """Ids of the jobs that must succeed before this one starts, without doubles, `needs` first."""
        sources = (self.teacher, self.student)
        named = [*self.needs, *(source.job for source in sources if source is not None and source.job is not None)]
        return tuple(dict.fromkeys(named))

    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return _sha256(self.model_dump(mode="json"))

    def training_digest(self) -> str:
        """As `digest`, of what the weights depend on: a job of another name, priority or place is the same training."""
        return _sha256(self.model_dump(mode="json", exclude=_NOT_TRAINED_BY))


def _sha256(plain: Any) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
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
