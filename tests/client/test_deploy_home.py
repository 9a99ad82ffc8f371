"""The home of an installation: its lock, ports, socket and logs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import home


@pytest.fixture
def taken() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_taken_default_port_is_replaced_by_a_later_one(taken: int) -> None:
    port = home.pick_port("127.0.0.1", taken, flag="--api-port", fixed=False)
    assert taken < port < taken + 200


def test_a_port_given_to_another_service_is_not_given_twice(taken: int) -> None:
    port = home.pick_port("127.0.0.1", taken, flag="--api-port", fixed=False)
    other = home.pick_port("127.0.0.1", taken, flag="--mlflow-port", fixed=False, taken=frozenset({port}))
    assert other not in (taken, port)


def test_a_taken_port_that_was_asked_for_is_an_error_naming_the_flag(taken: int) -> None:
    with pytest.raises(home.UpError, match=f"Port {taken}") as caught:
        home.pick_port("127.0.0.1", taken, flag="--api-port", fixed=True)
    assert caught.value.hint is not None and "--api-port" in caught.value.hint


def test_the_socket_lies_in_the_home_in_a_folder_of_the_user_alone(tmp_path: Path) -> None:
    path = home.socket_path(Path("/tmp") / f"dsd-test-{os.getpid()}")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.rmdir()
    path.parent.parent.rmdir()


def test_a_home_with_a_long_path_gets_a_socket_with_a_short_one(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    path = home.socket_path(long)
    assert len(os.fsencode(path)) <= home.SOCKET_PATH_LIMIT
    assert path == home.socket_path(long)
    assert path != home.socket_path(tmp_path / ("long" * 31))
    for folder in (path.parent, home.socket_path(tmp_path / ("long" * 31)).parent):
        folder.rmdir()


def test_a_socket_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("link" * 30)
    folder = home.socket_path(long).parent
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(home.UpError, match="belongs to somebody else"):
            home.socket_path(long)
    finally:
        folder.unlink()


def test_a_log_that_grew_large_is_put_aside_at_the_next_start(tmp_path: Path) -> None:
    os.close(home.open_log(tmp_path, "api"))
    os.truncate(home.log_path(tmp_path, "api"), home.LOG_LIMIT_BYTES + 1)
    os.close(home.open_log(tmp_path, "api"))
    assert home.log_path(tmp_path, "api").stat().st_size == 0
    assert (tmp_path / "logs" / "api.log.1").stat().st_size == home.LOG_LIMIT_BYTES + 1


def test_a_lock_left_by_a_process_that_died_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "up.lock").write_text("4194305\n")
    fd = home.lock(tmp_path)
    assert (tmp_path / "up.lock").read_text() == f"{os.getpid()}\n"
    os.close(fd)
