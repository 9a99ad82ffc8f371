"""Running a network that exists already: from weights with their description, or from an exported ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dsd_core.cores import usable_cores
from dsd_core.data.class_list import rainbow
from dsd_core.errors import DataError, SpecError, WeightsError
from dsd_core.models.onnx_session import onnx_session
from dsd_core.models.sidecar import network_from_text
from dsd_core.pictures import Palette, colour, overlay
from dsd_core.teacher import load_segmenter
from dsd_core.weights import describe_weights, given_file, named_preprocess

STYLES = ("overlay", "colours", "ids")


@dataclass(frozen=True)
class Predictor:
    """`logits` takes uint8 images N3HW and gives logits NKHW; `palette` and `size` come from the config beside the
    file."""

    logits: Callable[[Tensor], Tensor]
    palette: Palette
    size: tuple[int, int] | None


def open_predictor(
    weights: Path | None,
    network: str | None,
    preprocess: str | None,
    model: Path | None,
    *,
    classes: tuple[str, ...] | None = None,
    threads: int | None = None,
) -> Predictor:
    """A predictor from `weights` (with network and preprocessing given or beside the file) or from `model` (ONNX).

    `network` is a short form, a constructor call or the JSON of a NetworkSpec. `classes` is what the dataset has; None
    takes all outputs. Raises SpecError or WeightsError.
    """
    torch.set_num_threads(threads or usable_cores())
    path = given_file(weights, model)
    config_file = path.parent / "config.json"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    palette = [tuple(rgb) for rgb in config.get("palette", [])]
    size = tuple(config["size"]) if "size" in config else None
    if model is not None:
        return Predictor(_onnx_logits(model, len(classes) if classes else None), palette or rainbow(256), size)
    spec = network_from_text(network, field="--network") if network else None
    pixels = named_preprocess(preprocess) if preprocess else None
    spec, pixels = describe_weights(path, spec, pixels, field="")
    segmenter = load_segmenter(path, spec, pixels, classes, field="")
    return Predictor(segmenter.to(memory_format=torch.channels_last), palette or rainbow(256), size)


def segment_file(
    predictor: Predictor, image: Path, out: Path, *, size: tuple[int, int] | None, style: str
) -> dict[int, float]:
    """Write the mask of one image file as PNG of the image's own size; returns the share of pixels of each class id.

    The network sees the image at `size`, by default the size it was validated at. Styles: overlay, colours, ids.
    Raises DataError for a file that is no image.
    """
    if style not in STYLES:
        raise SpecError(f"There is no style {style!r}.", hint=f"Known: {', '.join(STYLES)}.")
    try:
        with Image.open(image, formats=("PNG", "JPEG")) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{image} cannot be read as PNG or JPEG: {error}") from error
    height, width = size or predictor.size or (picture.height, picture.width)
    seen = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    with torch.inference_mode():
        mask = predictor.logits(torch.from_numpy(seen).permute(2, 0, 1).unsqueeze(0)).argmax(dim=1)[0]
    ids = Image.fromarray(mask.numpy().astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    mask_HW = np.array(ids)
    if style == "overlay":
        ids = Image.fromarray(overlay(np.array(picture), mask_HW, predictor.palette))
    elif style == "colours":
        ids = Image.fromarray(colour(mask_HW, predictor.palette))
    out.parent.mkdir(parents=True, exist_ok=True)
    ids.save(out, format="PNG")
    found, counts = np.unique(mask_HW, return_counts=True)
    return {int(number): round(float(count) / mask_HW.size, 6) for number, count in zip(found, counts, strict=True)}


def _onnx_logits(model: Path, classes: int | None) -> Callable[[Tensor], Tensor]:
    session = onnx_session(model)
    inputs = {item.name: item for item in session.get_inputs()}
    if "image" not in inputs or inputs["image"].type != "tensor(uint8)":
        raise WeightsError(
            f"{model} has inputs {sorted(inputs)}; an exported student has one, `image` uint8 [N,H,W,3].",
            hint="Use the model.onnx that this project exported.",
        )

    def logits(images_N3HW: Tensor) -> Tensor:
        image = images_N3HW.permute(0, 2, 3, 1).contiguous().numpy()
        try:
            found = torch.from_numpy(session.run(["logits"], {"image": image})[0])
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            raise SpecError(
                f"{model} cannot take images of {image.shape[1]}x{image.shape[2]}: {error}",
                hint="Where config.json says fixed_size, give only its own size: no other size, scales or window.",
            ) from error
        if classes is not None and found.shape[1] != classes:
            raise SpecError(f"{model} has {found.shape[1]} classes, the dataset has {classes}.")
        return found

    return logits
