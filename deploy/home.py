"""The folder that holds all state of one installation: its lock, ports and logs, and what `dsd` reads to find it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from dsd_core.errors import DsdError

LOG_LIMIT_BYTES = 10 * 1024 * 1024
SOCKET_PATH_LIMIT = 100  # sun_path holds 104 bytes on macOS and 108 on Linux


class UpError(DsdError):
    """The service cannot be started."""


def lock(home: Path, patience_s: float = 3.0) -> int:
    """Hold the home for this process until it ends. Raises UpError naming the holder.

    A supervisor that was killed leaves its lock with the watchdog for the moment that this takes to end the children.
    """
    home.mkdir(parents=True, exist_ok=True)
    fd = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode().strip() or "0"
            if alive(int(holder)) or time.monotonic() > deadline:
                raise UpError(
                    f"A service already runs on {home} (process {holder}).",
                    hint=f"Use it, stop it with `kill {holder}`, or give another folder with --home.",
                ) from None
            time.sleep(0.1)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def alive(pid: int) -> bool:
    """True if there is such a process."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def pick_port(host: str, wanted: int, *, flag: str, fixed: bool, taken: frozenset[int] = frozenset()) -> int:
    """`wanted` if it is free, else the next free one; with `fixed`, UpError instead of another port."""
    if _free(host, wanted) and wanted not in taken:
        return wanted
    if fixed:
        raise UpError(
            f"Port {wanted} on {host} is taken.", hint=f"Stop what listens there, or choose another with {flag}."
        )
    for port in range(wanted + 1, min(wanted + 200, 65536)):
        if port not in taken and _free(host, port):
            return port
    raise UpError(f"No port from {wanted} to {wanted + 200} on {host} is free.", hint=f"Choose one with {flag}.")


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def socket_path(home: Path) -> Path:
    """Where the broker listens: in the home, or below the temporary folder if the home's path is too long for a socket.

    The folder is private to the user. Raises UpError where somebody else owns it.
    """
    path = home / "broker" / "valkey.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:10]
        path = Path(tempfile.gettempdir()) / f"dsd-{os.getuid()}-{digest}" / "valkey.sock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = path.parent.lstat()
    if path.parent.is_symlink() or owner.st_uid != os.getuid():
        raise UpError(f"{path.parent} belongs to somebody else.", hint="Remove it, or give another folder with --home.")
    path.parent.chmod(0o700)
    return path


def open_log(home: Path, name: str) -> int:
    """A descriptor that appends to logs/NAME.log; a log over 10 MB becomes NAME.log.1 first."""
    path = log_path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def log_path(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def log_tail(home: Path, name: str, lines: int = 12) -> str:
    path = log_path(home, name)
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def write_address(home: Path, address: dict[str, Any]) -> None:
    """up.json, replaced in one step: the supervisor's pid and the URLs, for `dsd` to find."""
    part = home / "up.json.part"
    part.write_text(json.dumps(address, indent=1) + "\n")
    part.replace(home / "up.json")


def forget_address(home: Path) -> None:
    (home / "up.json").unlink(missing_ok=True)
