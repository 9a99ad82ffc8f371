"""Who may import whom: the contracts of pyproject.toml hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_every_import_contract_is_kept(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--cache-dir", tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "6 kept, 0 broken" in done.stdout
