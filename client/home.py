"""Where the service is: DSD_URL, else what `dsd up` wrote into its home, else the default port of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000"


def default_url() -> str:
    """The base URL of the service this shell means."""
    return os.environ.get("DSD_URL") or (running(home_dir()) or {}).get("api_url") or DEFAULT_URL


def home_dir() -> Path:
    return Path(os.environ.get("DSD_HOME") or "~/.dsd").expanduser().absolute()


def running(home: Path) -> dict[str, Any] | None:
    """What the service that runs on `home` wrote about itself: pid, api_url, mlflow_url. None if none runs there."""
    try:
        address: dict[str, Any] = json.loads((home / "up.json").read_text())
        os.kill(int(address["pid"]), 0)
    except PermissionError:
        return address
    except (OSError, ValueError, KeyError):
        return None
    return address
