"""Fetch and load the networks of `zoo_names`. A file that is there already is not fetched again.

torchvision's weights are pickles in TORCH_HOME; each is checked against the hash in its name and converted to
safetensors in a process of its own. segmentation-models-pytorch's are safetensors in HF_HOME.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision.models.segmentation as torchvision_zoo
from huggingface_hub import hf_hub_download
from torch import nn

from dsd_core.errors import WeightsError
from dsd_core.models.networks import build, stride
from dsd_core.models.pickles import convert
from dsd_core.models.segmenter import Segmenter
from dsd_core.models.weights import load_weights
from dsd_core.models.zoo_names import ZooTeacher, check_zoo_teacher
from dsd_core.network_spec import DECODERS, NetworkSpec

FIELD = "/teacher/zoo"


def load_zoo_teacher(name: str, classes: Sequence[str]) -> tuple[Segmenter, NetworkSpec, str]:
    """The teacher of this name, its spec, and the sha256 of its weights.

    Raises SpecError for an unknown name or other classes, WeightsError where the weights cannot be fetched.
    """
    entry = check_zoo_teacher(name, classes)
    network, spec, file = _from_torchvision(name, entry) if entry.source == "torchvision" else _from_hub(entry)
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Segmenter(network, entry.preprocess, entry.classes, stride(spec)).eval(), spec, digest


def torchvision_network(name: str, classes: int, weights: Path) -> tuple[nn.Module, NetworkSpec]:
    """A network of torchvision's zoo filled from a safetensors file. Raises WeightsError."""
    # torchvision trained these with the auxiliary head, so the files have its tensors.
    spec = NetworkSpec(name=name)
    network = build(spec, classes, field=FIELD)
    load_weights(network, weights, field=FIELD)
    return network, spec


def hub_network(config: Path, weights: Path, classes: int) -> tuple[nn.Module, NetworkSpec]:
    """A network of segmentation-models-pytorch from its published config.json and safetensors. Raises WeightsError."""
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        names = {class_name: name for name, class_name in DECODERS.items()}
        options = {key: value for key, value in said.items() if key.startswith(("decoder_", "encoder_depth"))}
        spec = NetworkSpec(name=names[said["_model_class"]], encoder=said["encoder_name"], options=options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(config, f"its config says no network of segmentation-models-pytorch ({error!r})") from error
    network = build(spec, classes, field=FIELD)
    load_weights(network, weights, field=FIELD)
    return network, spec


def _from_torchvision(name: str, entry: ZooTeacher) -> tuple[nn.Module, NetworkSpec, Path]:
    url = getattr(torchvision_zoo, entry.weights).COCO_WITH_VOC_LABELS_V1.url
    pickled = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    converted = pickled.with_suffix(".safetensors")
    if not converted.is_file():
        if not pickled.is_file():
            _download(url, pickled)
        _check_hash(pickled)
        convert(pickled, converted)
    network, spec = torchvision_network(name, entry.classes, converted)
    return network, spec, converted


def _from_hub(entry: ZooTeacher) -> tuple[nn.Module, NetworkSpec, Path]:
    try:
        config, weights = (Path(hf_hub_download(entry.weights, name)) for name in ("config.json", "model.safetensors"))
    except Exception as error:  # the hub's client, its HTTP library and the system each have their own classes
        raise _not_fetched(f"https://huggingface.co/{entry.weights}", "HF_HOME", error) from error
    network, spec = hub_network(config, weights, entry.classes)
    return network, spec, weights


def _download(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), progress=False)
    except Exception as error:  # the HTTP library and the system each have their own classes
        raise _not_fetched(url, str(target), error) from error


def _check_hash(file: Path) -> None:
    """torchvision's files carry the first eight digits of their sha256 in their names. Raises WeightsError."""
    expected = file.stem.rpartition("-")[2]
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(expected):
        raise _unusable(file, f"its sha256 starts with {found[:8]}, its name says {expected}")


def _not_fetched(url: str, place: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{url} could not be downloaded: {error}",
        field=FIELD,
        hint=f"Check the worker's network, or put the file there ({place}) yourself.",
    )


def _unusable(file: Path, reason: str) -> WeightsError:
    return WeightsError(f"{file} cannot be used: {reason}.", field=FIELD, hint="Delete it, and it is fetched again.")
