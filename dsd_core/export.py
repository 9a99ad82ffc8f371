"""The finished student as files that need no code of ours: weights, config, ONNX, card, checksums.

    student/   model.safetensors   the network's own state dict, its own names; nothing of teacher, losses or optimiser
               config.json         network, preprocessing, classes, palette, scores
               model.onnx          image uint8 [N,H,W,3] RGB -> logits float32 [N,K,H,W]; preprocessing is inside
               README.md           the model card
               SHA256SUMS

The folder appears whole: it is written beside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from dsd_core.disk import storage_error, storage_errors
from dsd_core.errors import DsdError
from dsd_core.events import Cost, FileInfo, Note, Result, Score, SeedResult
from dsd_core.models.cost import count_flops, deployed_params, latency_ms
from dsd_core.models.onnx_graph import write_onnx
from dsd_core.models.onnx_half import halve_weights
from dsd_core.models.onnx_session import onnx_session
from dsd_core.models.segmenter import Segmenter
from dsd_core.network_spec import NetworkSpec, Preprocess
from dsd_core.spec import Export
from dsd_core.spread import over_seeds

PARITY = {"float32": 1e-3, "float16": 5e-2}  # of class probabilities; the differences seen are some 1e-6 and 1e-3


@dataclass(frozen=True)
class Exported:
    files: list[FileInfo]
    onnx_max_error: float
    fixed_size: bool


def export_student(
    student: Segmenter,
    network: NetworkSpec,
    preprocess: Preprocess,
    folder: Path,
    *,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]],
    size: tuple[int, int],
    options: Export,
    about: dict[str, Any],
) -> Exported:
    """Write the student to `folder`. `size` is the (height, width) it was validated at, `about` goes into config and
    card.

    Raises DsdError when the ONNX graph does not compute what the network computes, StorageError when it cannot be
    written.
    """
    partial = folder.with_suffix(".tmp")
    student = student.to("cpu").eval()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in student.network.state_dict().items()}, partial / "model.safetensors")
        write_onnx(student, partial / "model.onnx")
        if options.precision == "float16":
            halve_weights(partial / "model.onnx")
        error, fixed_size = check_parity(student, partial / "model.onnx", size, PARITY[options.precision])
        config = {
            "network": network.model_dump(mode="json"),
            "preprocess": preprocess.model_dump(mode="json"),
            "classes": list(classes),
            "palette": [list(colour) for colour in palette],
            "size": list(size),
            "onnx": {"input": "image", "output": "logits", "fixed_size": fixed_size, **options.model_dump()},
            **about,
        }
        (partial / "config.json").write_text(json.dumps(config, indent=1))
        (partial / "README.md").write_text(model_card(config))
        files = [file_info(path) for path in sorted(partial.iterdir())]
        (partial / "SHA256SUMS").write_text("".join(f"{file.sha256}  {file.path}\n" for file in files))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as failed:
        raise storage_error(failed, folder) from failed
    return Exported([*files, file_info(folder / "SHA256SUMS")], error, fixed_size)


def onnx_parity(student: Segmenter, path: Path, size: tuple[int, int]) -> float:
    """Largest difference of class probabilities between graph and network over a random image of this size.

    NaN where the graph cannot run at that size.
    """
    image_NHW3 = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    with torch.inference_mode():
        ours = student(torch.from_numpy(image_NHW3).permute(0, 3, 1, 2)).softmax(dim=1)
    try:
        logits = onnx_session(path).run(["logits"], {"image": image_NHW3})[0]
    except Exception:  # onnxruntime's errors have no common class below Exception
        return math.nan
    return float((ours - torch.from_numpy(logits).softmax(dim=1)).abs().max())


def check_parity(student: Segmenter, path: Path, size: tuple[int, int], limit: float) -> tuple[float, bool]:
    """The largest difference at `size` and at a size that is no multiple of any stride, and whether only `size` works.

    Raises DsdError where the graph is not the network at `size`: the file would not be the student.
    """
    at_size, elsewhere = onnx_parity(student, path, size), onnx_parity(student, path, (size[0] - 7, size[1] + 9))
    if not at_size <= limit:
        raise DsdError(
            f"The exported ONNX graph differs from the network by {at_size:.2g} in class probability, above {limit}.",
            hint="A checkpoint is kept. With export.precision: float16 try float32; else report this student network.",
        )
    fixed_size = not elsewhere <= limit
    return (at_size if fixed_size else max(at_size, elsewhere)), fixed_size


def fixed_size_warning(size: tuple[int, int]) -> Note:
    text = f"The ONNX graph takes images of {size[0]}x{size[1]} only: this network cannot be traced for others."
    return Note(level="warning", message=text)


def measure_cost(segmenter: nn.Module, network: NetworkSpec, classes: int, size: tuple[int, int]) -> Cost:
    """Parameters, FLOPs and the median CPU latency of one image of `size`, without an auxiliary head."""
    return Cost(
        network=str(network),
        params=deployed_params(segmenter),
        flops=count_flops(network, classes, size),
        latency_ms=latency_ms(segmenter.to("cpu"), size, torch.get_num_threads()),
        height=size[0],
        width=size[1],
    )


def write_result(out: Path, result: Result) -> None:
    """Write result.json, whole or not at all. Raises StorageError."""
    partial = out / "result.json.tmp"
    with storage_errors(out):
        partial.write_text(result.model_dump_json(indent=1))
        os.replace(partial, out / "result.json")


def file_info(path: Path) -> FileInfo:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(path=path.name, bytes=path.stat().st_size, sha256=digest)


@lru_cache
def code_version() -> str:
    """The package's version and the first 12 digits of the sha256 over the library's source."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('dsd')}+{digest.hexdigest()[:12]}"


def model_card(config: dict[str, Any]) -> str:
    """A README for the exported student, in Markdown."""
    network, pixels = config["network"], config["preprocess"]
    name = network["name"] + (f":{network['encoder']}" if network["encoder"] else "")
    height, width = config["size"]
    scores = {who: Score.model_validate(score) for who, score in config.get("scores", {}).items()}
    rows = [f"| {who} | {_percent(score.miou)} | {_percent(score.pixel_accuracy)} |" for who, score in scores.items()]
    own = scores["student"].per_class_iou if "student" in scores else {}
    classes = [f"| {label} | {_percent(value)} |" for label, value in own.items()]
    lines = [
        f"# {config.get('name', name)}",
        "",
        f"Semantic segmentation, {len(config['classes'])} classes, network `{name}`, validated at {width} x {height}"
        f" pixels on `{config.get('dataset', 'its dataset')}`.",
        "",
        "| network | mIoU | pixel accuracy |",
        "|---|---|---|",
        *rows,
        "",
        "`student` is this model, `teacher` what it learned from, `baseline` the same network trained without",
        "a teacher, same seed and schedule. Scores are on the validation split.",
        "",
        *_over_seeds([SeedResult.model_validate(result) for result in config.get("seeds", [])]),
        "## Use",
        "",
        "```python",
        "import numpy as np, onnxruntime",
        "from PIL import Image",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f'image = Image.open("photo.jpg").convert("RGB").resize(({width}, {height}))',
        'logits = session.run(["logits"], {"image": np.asarray(image)[None]})[0]',
        "mask = logits.argmax(1)[0]",
        "```",
        "",
        "Images are uint8 RGB [N,H,W,3], logits float32 [N,K,H,W]; preprocessing is inside the graph. For the weights",
        "in `model.safetensors`: pixels on the 0..255 scale in order"
        f" {pixels['order']}, minus {pixels['mean']}, divided by {pixels['std']}.",
        "",
        "## IoU of each class",
        "",
        "| class | IoU |",
        "|---|---|",
        *classes,
        "",
    ]
    return "\n".join(lines)


def _over_seeds(seeds: list[SeedResult]) -> list[str]:
    """A paragraph on how far the seeds of the job lie apart, where it had several."""
    if len(seeds) < 2:
        return []
    figures = over_seeds(seeds)
    titles = {"miou": "student", "baseline": "baseline", "gain": "gain"}
    shown = [
        f"{title} {_percent(figures[f'{name}_mean'])} ± {_percent(figures[f'{name}_spread'])}"
        for name, title in titles.items()
        if figures[f"{name}_mean"] is not None
    ]
    named = ", ".join(str(result.seed) for result in seeds)
    return [
        f"The same training with the seeds {named} gives, as mean ± sample standard deviation of the mIoU:",
        f"{', '.join(shown)}. This model is of seed {seeds[0].seed}, the first.",
        "",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
