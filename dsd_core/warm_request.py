"""What a worker asks of `dsd_core.warm`: each packet of their socket is a JSON object, requests are fields of this."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

ROOM = "DSD_WARM_ROOM"
"""A variable of the server's environment that keeps a place free where `/proc/PID/environ` looks."""
ROOM_BYTES = 128
PACKET_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """One process to fork: the arguments of `python -m dsd_core`, what to add to its environment, where it prints."""

    arguments: list[str]
    environment: dict[str, str]
    log: str
    shown: list[str]  # the variables of `environment` that /proc/PID/environ must show

    def packet(self) -> bytes:
        return json.dumps(asdict(self)).encode()
