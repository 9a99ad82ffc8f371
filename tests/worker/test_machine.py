"""What a machine has for jobs, and how its workers share it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from deploy import services
from jobs.settings import Settings
from worker.machine import NoSuchDevice, chosen, offer_of, parse_gpus, shares

GPUS = {"0": 79.65, "1": 79.65, "2": 23.7}


def test_the_lines_of_nvidia_smi_are_gpus_with_their_memory_in_gib() -> None:
    assert parse_gpus("0, 81559\n1, 24268\n") == {
        "0": pytest.approx(79.65, abs=0.01),
        "1": pytest.approx(23.7, abs=0.01),
    }
    assert parse_gpus("") == {}


def test_a_worker_takes_the_gpus_it_is_given_all_of_them_or_none() -> None:
    assert chosen("auto", GPUS) == ("0", "1", "2")
    assert chosen("2, 0", GPUS) == ("2", "0")
    assert chosen("cpu", GPUS) == chosen("auto", {}) == ()


@pytest.mark.parametrize(("found", "hint"), [(GPUS, "0, 1, 2"), ({}, "nvidia-smi shows none")])
def test_a_gpu_that_is_not_there_is_named(found: dict[str, float], hint: str) -> None:
    with pytest.raises(NoSuchDevice, match="GPU 7,") as caught:
        chosen("7", found)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("devices", "workers", "expected"),
    [
        (["0", "1", "2", "3"], 4, ["0", "1", "2", "3"]),
        (["0", "1", "2", "3"], 1, ["0,1,2,3"]),
        (["0", "1", "2"], 2, ["0", "1,2"]),
        (["0"], 3, ["0", "cpu", "cpu"]),
        ([], 2, ["cpu", "cpu"]),
        (["0"], 0, []),
        ([], 0, []),
    ],
)
def test_no_two_workers_share_a_gpu(devices: list[str], workers: int, expected: list[str]) -> None:
    assert shares(devices, workers) == expected


def test_a_worker_on_the_cpu_offers_the_ram_and_its_labels(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, devices="cpu", worker_labels={"zone": "a"})
    offer = offer_of(settings, "one@here")
    assert (offer.worker, offer.device, offer.devices, offer.labels) == ("one@here", "cpu", (), {"zone": "a"})
    assert 0 < offer.memory_gib <= psutil.virtual_memory().total / 2**30


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program `nvidia-smi` that shows two."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, 81559'\necho '1, 40960'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_dsd_up_gives_each_worker_gpus_of_its_own(tmp_path: Path) -> None:
    def devices(**settings: object) -> list[str]:
        return [s.env["DSD_DEVICES"] for s in services.workers(tmp_path, Settings(home=tmp_path, **settings))]

    assert devices(workers=1) == ["0,1"]
    assert devices(workers=3) == ["0", "1", "cpu"]
    assert devices(workers=2, devices="1") == ["1", "cpu"]
    with pytest.raises(NoSuchDevice):
        devices(devices="2")


def test_dsd_up_deals_the_cores_out_among_the_workers_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(workers: int) -> list[str]:
        settings = Settings(home=tmp_path, workers=workers, devices="cpu")
        return [service.env["DSD_THREADS"] for service in services.workers(tmp_path, settings)]

    monkeypatch.delenv("DSD_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert threads(1) == [str(cores)]
    assert threads(2 * cores) == ["1"] * 2 * cores
    monkeypatch.setenv("DSD_THREADS", "1")
    assert threads(1) == ["1"]


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_on_gpus_offers_the_memory_of_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = offer_of(Settings(home=tmp_path), "one@here")
    assert (offer.device, offer.devices, offer.memory_gib) == ("cuda", ("0", "1"), 40.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert offer_of(Settings(home=tmp_path), "one@here").memory_gib == pytest.approx(79.65, abs=0.01)
