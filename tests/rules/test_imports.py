"""Heavy libraries stay behind their doors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("api.main", ("torch", "mlflow", "onnxruntime")),
        ("client.cli", ("torch", "mlflow", "sqlalchemy", "celery", "fastapi", "numpy")),
        ("worker.controller", ("torch", "mlflow")),
        ("worker.tasks", ("torch", "mlflow")),
        ("dsd_core.check", ("torch",)),
        ("deploy.up", ("torch", "mlflow")),
    ],
)
def test_importing_a_torch_free_side_brings_in_nothing_heavy(module: str, kept_out: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {kept_out!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
