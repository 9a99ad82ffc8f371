"""Write the recipes beside this file, a folder a dataset: `python examples/recipes/make.py`.

Schedules and weights are those of public code, named in each file. A published schedule counts iterations and a job
counts epochs of full batches, so epochs = iterations / (images // batch), rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ITERATIONS = 40_000
SCORINGS = 8
"""How often a student is scored while it trains."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """A way to train that published tables share; SGD with momentum 0.9 and poly 0.9 in each."""

    source: str
    batch: int
    learning_rate: float
    weight_decay: float
    scale: tuple[float, float]


@dataclass(frozen=True)
class Data:
    """A dataset: images of its train split, and the crop of each protocol that has it. A teacher below `floor` is not
    taken for one."""

    title: str
    root: str
    images: int
    crops: dict[str, tuple[int, int]]
    floor: float
    scored_at_once: int = 4


@dataclass(frozen=True)
class Network:
    title: str
    student: Json


@dataclass(frozen=True)
class Method:
    """Losses beside their source; `losses` is a preset or a list."""

    source: str
    losses: str | list[Json]


PROTOCOLS = {
    "skd": Protocol("SKD, IFVD and CWD", 8, 0.01, 5e-4, (0.7, 2.1)),
    "cirkd": Protocol("CIRKD", 16, 0.02, 1e-4, (0.5, 2.0)),
}

DATASETS = {
    "cityscapes": Data(
        "Cityscapes", "data/cityscapes", 2975, {"skd": (512, 512), "cirkd": (512, 1024)}, 0.6, scored_at_once=1
    ),
    "camvid": Data("CamVid", "data/CamVid", 367, {"cirkd": (360, 360)}, 0.5),
    "ade20k": Data("ADE20K", "data/ADEChallengeData2016", 20210, {"cirkd": (512, 512)}, 0.3),
    "voc2012_aug": Data("Pascal VOC 2012 with SBD", "data/VOCdevkit/VOC2012", 10582, {"cirkd": (512, 512)}, 0.6),
}


def _pretrained(name: str, encoder: str, **options: Any) -> Json:
    """A decoder whose encoder was trained on ImageNet."""
    network = {"name": name, "encoder": encoder, "encoder_weights": "imagenet"}
    return {"network": network | ({"options": options} if options else {})}


NETWORKS = {
    "pspnet_r101": Network(
        "PSPNet-R101", {"network": "pspnet_r101", "encoder_file": "weights/resnet101-imagenet.safetensors"}
    ),
    "pspnet_r18": Network(
        "PSPNet-R18", {"network": "pspnet_r18", "encoder_file": "weights/resnet18-imagenet.safetensors"}
    ),
    "pspnet_r18_half": Network("PSPNet-R18 of half width", {"network": "pspnet_r18_half"}),
    "espnet": Network("ESPNet", {"network": "espnet"}),
    "espnet_c": Network("ESPNet-C", {"network": "espnet_c"}),
    "enet": Network("ENet", {"network": "enet"}),
    "deeplabv3plus_mbv2": Network("DeepLabV3+ on MobileNetV2", _pretrained("deeplabv3plus", "mobilenet_v2")),
    "deeplabv3_r101": Network("DeepLabV3-R101", _pretrained("deeplabv3", "resnet101")),
    "deeplabv3_r18": Network("DeepLabV3-R18", _pretrained("deeplabv3", "resnet18", decoder_channels=128)),
}


def _beside_kd(*losses: Json) -> list[Json]:
    return [{"loss": "ce"}, *losses, {"loss": "kd"}]


OWN = "this project's; the paper's are not known"
METHODS = {
    "kd": Method("CIRKD's for KD", _beside_kd()),
    "at": Method(
        "CIRKD's for AT, with KD", _beside_kd({"loss": "at", "weight": 10000, "on": "feature", "reduction": "mean"})
    ),
    "fitnet": Method("CIRKD's for FitNet, with KD", _beside_kd({"loss": "fitnet", "weight": 10})),
    "skd": Method(
        "CIRKD's for SKD, with KD; without the adversarial term",
        _beside_kd({"loss": "skd_pairwise", "weight": 10, "pool": 2}),
    ),
    "ifvd": Method(
        "CIRKD's for IFVD, with KD; without the adversarial term", _beside_kd({"loss": "ifvd", "weight": 20})
    ),
    "cwd": Method(
        "CIRKD's for CWD, with KD; without the adversarial term",
        _beside_kd(
            {"loss": "cwd", "weight": 3, "logits_at": "head"},
            {"loss": "cwd", "name": "cwd-features", "weight": 50, "on": "feature"},
        ),
    ),
    "cirkd": Method(
        "CIRKD's, with KD; without the memory queues", _beside_kd({"loss": "cirkd", "weight": 1, "stride": 8})
    ),
    "dist": Method("DIST's", [{"loss": "ce"}, {"loss": "dist"}]),
    "dsd": Method(OWN, "dsd"),
    "dsd_kd": Method(OWN, "dsd_kd"),
    "cirkd_dsd": Method("those of DSD in CIRKD's code; the paper's are not known", "cirkd_dsd"),
}

FIRST = ("pspnet_r101", "pspnet_r18")
"""Teacher and student that are trained by every method; the student also without a teacher, in a job of its own."""
OTHERS = ("pspnet_r18_half", "espnet", "espnet_c", "enet", "deeplabv3plus_mbv2")
"""Students of the same teacher that are trained by DSD, and without a teacher in the same job."""
SECOND = ("deeplabv3_r101", "deeplabv3_r18")
"""The pair on which public results of DSD exist."""


def recipes() -> Iterator[tuple[Path, str]]:
    """The file of each recipe, below this folder, and its text; teachers before those they teach."""
    for dataset in DATASETS:
        protocol = "skd" if "skd" in DATASETS[dataset].crops else "cirkd"
        yield _alone(dataset, FIRST[0], protocol, teaches=True)
        yield _alone(dataset, FIRST[1], protocol, teaches=False)
        for method in METHODS:
            yield _taught(dataset, FIRST, method, protocol, baseline=False)
        for student in OTHERS:
            yield _taught(dataset, (FIRST[0], student), "dsd", protocol, baseline=True)
        yield _alone(dataset, SECOND[0], "cirkd", teaches=True)
        for method in ("dsd", "cirkd_dsd"):
            yield _taught(dataset, SECOND, method, "cirkd", baseline=method == "dsd")


def _alone(dataset: str, network: str, protocol: str, *, teaches: bool) -> tuple[Path, str]:
    """A job without a teacher: one that makes a teacher, or what the taught students are compared with."""
    data = DATASETS[dataset]
    job = {
        "kind": "train",
        "name": f"{dataset}-{network}",
        "dataset": {"name": dataset, "root": data.root},
        "student": NETWORKS[network].student,
        "losses": "plain",
        **({} if teaches else {"seeds": [0, 1, 2]}),
        "train": _training(data, protocol),
        "evaluate": _evaluation(data, protocol) | ({"floor": data.floor} if teaches else {}),
    }
    purpose = "to teach others" if teaches else "without a teacher"
    comments = [f"{NETWORKS[network].title} on {data.title}, {purpose}.", _schedule(protocol)]
    return HERE / dataset / f"{network}.yaml", _text(comments, job)


def _taught(dataset: str, pair: tuple[str, str], method: str, protocol: str, *, baseline: bool) -> tuple[Path, str]:
    data, (teacher, student), stem = DATASETS[dataset], pair, "-".join((*pair, method))
    job = {
        "kind": "distill",
        "name": f"{dataset}-{stem}",
        "dataset": {"name": dataset, "root": data.root},
        "teacher": {"model": f"{dataset}-{teacher}@latest-good"},
        "student": NETWORKS[student].student,
        "losses": METHODS[method].losses,
        **({"baseline": True} if baseline else {}),
        "seeds": [0, 1, 2],
        "train": _training(data, protocol),
        "evaluate": _evaluation(data, protocol),
    }
    comments = [
        f"{NETWORKS[student].title} on {data.title}, taught by {NETWORKS[teacher].title}.",
        _schedule(protocol),
        f"Losses and weights: {METHODS[method].source}.",
    ]
    return HERE / dataset / f"{stem}.yaml", _text(comments, job)


def _training(data: Data, protocol: str) -> Json:
    """What the field does not do is switched off: warm-up, clipping, changes of colour."""
    way = PROTOCOLS[protocol]
    return {
        "epochs": _epochs(data, protocol),
        "batch": way.batch,
        "optimizer": "sgd",
        "learning_rate": way.learning_rate,
        "weight_decay": way.weight_decay,
        "warmup_steps": 0,
        "clip_norm": None,
        "augment": {
            "crop": list(data.crops[protocol]),
            "scale": list(way.scale),
            **dict.fromkeys(("brightness", "contrast", "saturation"), 0),
        },
        "loaders": 4,
    }


def _evaluation(data: Data, protocol: str) -> Json:
    return {"every_epochs": _epochs(data, protocol) // SCORINGS, "batch": data.scored_at_once}


def _epochs(data: Data, protocol: str) -> int:
    return round(ITERATIONS / (data.images // PROTOCOLS[protocol].batch))


def _schedule(protocol: str) -> str:
    way = PROTOCOLS[protocol]
    return f"Schedule of {way.source}: {ITERATIONS:,} iterations of {way.batch}."


def _text(comments: list[str], job: Json) -> str:
    head = "".join(f"# {comment}\n" for comment in [*comments, "Written by examples/recipes/make.py."])
    return head + yaml.safe_dump(job, sort_keys=False, default_flow_style=None, width=118)


if __name__ == "__main__":
    for path, text in recipes():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
