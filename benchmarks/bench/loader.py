"""The data alone: views a second with and without loader processes, from decoded images in memory and from files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.bench.measure import Spent, figure
from benchmarks.bench.setting import BATCH, SIZE
from dsd_core.data import Dataset, open_dataset
from dsd_core.data.loader import cached, train_batches
from dsd_core.spec import Training

STEPS = 45  # of each in a round
LOADERS = (0, 2)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    files = open_dataset("camvid", str(arguments.data), "train", SIZE)
    found = compare({"memory": in_memory(files), "files": files}, arguments.rounds)
    return {"setting": f"CamVid at {SIZE[0]}x{SIZE[1]}, batches of {BATCH}", "figures": {}, "loading": found}


def in_memory(dataset: Dataset) -> Dataset:
    """The dataset with as many images decoded as its cache holds."""
    kept = cached(dataset)
    for index in range(len(kept)):
        kept.read(index)
    return kept


def compare(datasets: Mapping[str, Dataset], rounds: int) -> list[dict[str, Any]]:
    """What views cost from each of the datasets, with each number of loader processes, in turn."""
    cases = [(name, loaders) for name in datasets for loaders in LOADERS]
    spent: dict[tuple[str, int], list[Spent]] = {case: [] for case in cases}
    for number in range(rounds):
        for name, loaders in cases if number % 2 == 0 else reversed(cases):
            spent[name, loaders].append(load(datasets[name], loaders, number))
    views = STEPS * BATCH
    return [
        {
            "from": name,
            "loaders": loaders,
            "views_per_s": figure([views / taken.wall for taken in spent[name, loaders]], of="seconds on the wall"),
            "cpu_ms_per_view": figure([1000 * taken.cpu / views for taken in spent[name, loaders]], of="CPU ms"),
        }
        for name, loaders in cases
    ]


def load(dataset: Dataset, loaders: int, number: int) -> Spent:
    """What the batches of a round took after the first one, for which loader processes are started."""
    training = Training(batch=BATCH, loaders=loaders)
    batches = train_batches(dataset, training, number * STEPS, (number + 1) * STEPS + 1)
    next(batches)
    start = _until_now()
    for _ in range(STEPS):
        next(batches)
    return _until_now() - start


def _until_now() -> Spent:
    """Of this process and its loaders."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return Spent(time.perf_counter(), sum(taken.user + taken.system for taken in times))
