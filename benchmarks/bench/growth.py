"""Ten times the images: a step with a warm store, and the data alone.

Images are small (96x128), so that what each image costs beside its pixels shows. The larger dataset is the smaller one
ten times over.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.bench.loader import compare, in_memory
from benchmarks.bench.measure import figure, per_step, ratio
from benchmarks.bench.setting import BATCH, distilling
from benchmarks.bench.step import fill, peak_mib
from benchmarks.bench.training import Job, Trainings
from dsd_core.data import open_dataset

SIZE = (96, 128)
TIMES = {"once": 1, "ten times": 10}
STEPS = 45  # of each in a round


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    roots = {name: folder / f"data-{times}" for name, times in TIMES.items()}
    for name, root in roots.items():
        write_data(arguments.data, root, TIMES[name])
    specs = {name: job_of(root, arguments.teacher) for name, root in roots.items()}
    for name, spec in specs.items():
        fill(spec, folder / f"fill-{TIMES[name]}", folder / f"store-{TIMES[name]}")
    jobs = {
        name: Job(spec, folder / f"warm-{TIMES[name]}", folder / f"store-{TIMES[name]}") for name, spec in specs.items()
    }
    with Trainings(jobs) as together:
        together.steps()
        rounds = [together.steps(STEPS) for _ in range(arguments.rounds)]
    spent = {name: [taken[name] for taken in rounds] for name in jobs}
    peaks = {name: peak_mib(job._replace(out=folder / f"alone-{TIMES[name]}")) for name, job in jobs.items()}
    files = {name: open_dataset("camvid", str(root), "train", SIZE) for name, root in roots.items()}
    views = compare({name: in_memory(dataset) for name, dataset in files.items()}, arguments.rounds)
    pairs = zip(*(row["views_per_s"]["rounds"] for row in views if row["loaders"] == 0), strict=True)
    return {
        "setting": f"CamVid at {SIZE[0]}x{SIZE[1]}, {' and '.join(str(len(data)) for data in files.values())} images,"
        f" batches of {BATCH}; preset dsd; signals: image; one thread",
        "figures": {
            "step_at_10x_data": ratio(spent["ten times"], spent["once"], meaning="warm step with 10x data / with 1x"),
            "views_at_10x_data": figure([ten / one for one, ten in pairs], of="views a second, no loader processes"),
        },
        "steps": {name: {**per_step(taken, STEPS), "peak_mib": peaks[name]} for name, taken in spent.items()},
        "loading": views,
    }


def job_of(root: Path, teacher: Path) -> dict[str, Any]:
    spec = distilling(root, teacher, "image")
    spec["dataset"]["size"] = list(SIZE)
    spec["teacher"]["floor"] = 0.0  # it was trained at another size
    return spec


def write_data(source: Path, root: Path, times: int) -> None:
    """CamVid at SIZE, every training image so many times under other names; one file each."""
    for split, most in (("train", None), ("val", 8)):
        for part, resample in ((split, Image.Resampling.BILINEAR), (f"{split}annot", Image.Resampling.NEAREST)):
            (root / part).mkdir(parents=True)
            for path in sorted((source / part).glob("*.png"))[:most]:
                made = root / part / path.name
                with Image.open(path) as image:
                    image.resize(SIZE[::-1], resample).save(made)
                for number in range(1, times if split == "train" else 1):
                    os.link(made, made.with_name(f"{number}-{path.name}"))
