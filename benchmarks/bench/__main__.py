"""Measures the parts, each in a process of its own, and writes the report of what has been measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.bench import __doc__ as about
from benchmarks.bench.measure import in_words, machine
from benchmarks.bench.report import PARTS, collect, draw, markdown
from benchmarks.pieces import RESULTS, ROOT, add_places, check_places, write

FOUND = RESULTS / "bench"


def run_part(name: str, arguments: argparse.Namespace) -> bool:
    """Measure one part and keep what it found; False, and nothing is kept, where it failed."""
    where = ("--data", arguments.data, "--teacher", arguments.teacher, "--rounds", arguments.rounds)
    command = [sys.executable, "-m", "benchmarks.bench", "--here", name, *map(str, where)]
    start, load = time.monotonic(), os.getloadavg()[0]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if status:
        print(f"{name:10} failed after {wall:.0f} s", flush=True)
        return False
    took = {
        "wall_s": round(wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),  # of all processes that it started, too
        "peak_mib": round(used.ru_maxrss / 1024),  # of the largest of them
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    found = json.loads((FOUND / f"{name}.json").read_text())
    anew = f"python -m benchmarks.bench --only {name} --rounds {arguments.rounds}"
    keep(name, {"part": name, "command": anew, "machine": machine(), "took": took, **found})
    print(f"{name:10} {wall:6.0f} s, {took['cpu_s']:6.0f} CPU s, {took['peak_mib']} MiB", flush=True)
    return True


def measure_here(name: str, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="dsd-bench-") as folder:
        keep(name, import_module(f"benchmarks.bench.{name}").measure(arguments, Path(folder)))


def keep(name: str, found: dict[str, Any]) -> None:
    write(FOUND / f"{name}.json", json.dumps(found, indent=1) + "\n")


def write_report() -> None:
    parts = {name: json.loads(file.read_text()) for name in PARTS if (file := FOUND / f"{name}.json").exists()}
    report = collect(parts)
    write(RESULTS / "bench.json", json.dumps(report, indent=1) + "\n")
    write(RESULTS / "bench.md", markdown(report))
    draw(report, RESULTS / "bench.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_places(parser)
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison; 1 to see that it works")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--table", action="store_true", help="measure nothing; write the report of what is there")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        write_report()
        return
    check_places(arguments)
    if arguments.here:
        measure_here(arguments.here, arguments)
        return
    print(f"On {in_words(machine())}", flush=True)
    failed = []
    for name in arguments.only or PARTS:
        if not run_part(name, arguments):
            failed.append(name)
        write_report()
    print((RESULTS / "bench.md").read_text())
    if failed:
        raise SystemExit(
            f"These parts failed, and their figures are those from before or missing: {', '.join(failed)}."
        )


if __name__ == "__main__":
    main()
