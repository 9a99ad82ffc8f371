"""`make mutants`: plants each bug of planted.py in a copy of the code and runs the tests that must see it.

    python -m tests.mutants.run [PART OF A NAME]

Prints a line for each and how many were caught; exits 1 unless all were. The checkout is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.mutants.planted import MUTANTS, Mutant

NOT_CODE = shutil.ignore_patterns(".*", "*.egg-info", "results")
PASSED, FAILED = 0, 1  # exit codes of pytest; others say that it could not run the tests


def main(part: str = "") -> int:
    """The exit code."""
    mutants = [mutant for mutant in MUTANTS if part in mutant.name]
    with tempfile.TemporaryDirectory(prefix="dsd-mutants-") as folder:
        copy = Path(folder) / "code"
        shutil.copytree(ROOT, copy, ignore=NOT_CODE)
        run_tests(copy, sorted({test for mutant in mutants for test in mutant.tests}), expected=[PASSED])
        caught = sum([is_caught(copy, mutant) for mutant in mutants])
    print(f"{caught}/{len(mutants)} caught")
    return 0 if caught == len(mutants) else 1


def is_caught(copy: Path, mutant: Mutant) -> bool:
    """Whether a test fails once the bug is there. It is taken out again."""
    began = time.monotonic()
    file = copy / mutant.file
    code = file.read_text()
    file.write_text(planted(code, mutant))
    try:
        caught = run_tests(copy, mutant.tests) == FAILED
    finally:
        file.write_text(code)
    print(f"{'caught' if caught else 'MISSED'}  {time.monotonic() - began:4.1f} s  {mutant.name}", flush=True)
    return caught


def planted(code: str, mutant: Mutant) -> str:
    """The code with the bug. Raises ValueError where it does not fit the code."""
    if code.count(mutant.code) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has this {code.count(mutant.code)} times:\n{mutant.code}")
    return code.replace(mutant.code, mutant.bug)


def run_tests(copy: Path, tests: Sequence[str], expected: Collection[int] = (PASSED, FAILED)) -> int:
    """Run these tests on a copy of the code, up to the first that fails. The exit code; RuntimeError for another."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--timeout=60", "-p", "no:cacheprovider", *tests]
    # Bytecode of a bug must not outlive it: within a second, files of one length pass for the same.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if ended.returncode not in expected:
        raise RuntimeError(f"pytest ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
