"""Entries of small records, and a process of its own that fills one: `python -m tests.core.signals.records …`."""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

from dsd_core.signals import locks
from dsd_core.signals.entry import Entry
from dsd_core.signals.store import Store

SIZES = tuple(20 + 7 * (number % 5) for number in range(16))
KEY = "c0ffee"


def content(number: int, size: int, *, of: str = "right") -> bytes:
    """What a record holds: a function of its number, as a teacher's signals are of the image."""
    return random.Random(f"{of} {number}").randbytes(size)


def fill(entry: Entry, numbers: list[int] | None = None, *, of: str = "right") -> list[int]:
    """Fill what is absent of these records, or of all; the numbers of those."""
    with entry.filling(range(entry.records) if numbers is None else numbers) as absent:
        for number in absent:
            entry.write(number, content(number, entry.sizes[number], of=of))
    return absent


def found(entry: Entry) -> list[bool]:
    """Which records are there. Fails where one is not what was written."""
    records = [entry.read(number) for number in range(entry.records)]
    for number, record in enumerate(records):
        assert record is None or record == content(number, entry.sizes[number]), f"record {number} is wrong"
    return [record is not None for record in records]


def main() -> None:
    """`fill`: all records, in batches of its own order, each told in a line. `hold`: records 0 to 3; says so, and
    writes once it is told to. `open`: the entry, until it is told to end. `prune`: says what it removed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=["fill", "hold", "open", "prune"])
    parser.add_argument("--locks", choices=["OpenFileLocks", "ProcessLocks"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", default="right")
    args = parser.parse_args()
    store = Store(args.folder, patience_s=300.0, locks=getattr(locks, args.locks))
    if args.what == "prune":
        print(*(held.key for held in store.prune().removed))
        return
    with store.open(KEY, SIZES, {}) as entry:
        print("ready", flush=True)
        sys.stdin.readline()
        if args.what == "hold":
            with entry.filling(range(4)) as absent:
                print("holding", flush=True)
                sys.stdin.readline()
                for number in absent:
                    entry.write(number, content(number, entry.sizes[number], of=args.of))
        elif args.what == "fill":
            order = list(range(entry.records))
            random.Random(args.seed).shuffle(order)
            for start in range(0, len(order), 4):
                for number in fill(entry, order[start : start + 4]):
                    os.write(sys.stdout.fileno(), f"{number}\n".encode())


if __name__ == "__main__":
    main()
