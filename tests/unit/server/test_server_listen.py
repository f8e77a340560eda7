"""The listening socket, and the directory of the other sockets."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from minisgl.server.config import ServerConfig
from minisgl.server.launcher import listen
from minisgl.utils.errors import UserError
from minisgl.utils.sockets import MAX_SOCKET_PATH, private_directory


def config(host: str, port: int = 0) -> ServerConfig:
    return ServerConfig(served_model_name="m", host=host, port=port)


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_free_port_of_one_address() -> None:
    with listen(config("127.0.0.1")) as listener:
        assert reaches("127.0.0.1", listener.getsockname()[1])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_every_address_of_both_families() -> None:
    with listen(config("::")) as listener:
        assert reaches("::1", listener.getsockname()[1])
        assert reaches("127.0.0.1", listener.getsockname()[1])


def test_what_cannot_be_had_is_said_with_the_reason() -> None:
    with listen(config("127.0.0.1")) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            listen(config("127.0.0.1", port))
    for host in ("no such host", "192.0.2.1", "x" * 300):
        with pytest.raises(UserError, match=f"cannot listen on {host} port 0: "):
            listen(config(host))


@pytest.mark.parametrize("depth", [10, 200])
def test_the_private_directory_holds_socket_paths(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # where pytest's are may be too long already
        _hold_socket_paths(Path(short) / ("x" * depth), monkeypatch, depth)


def _hold_socket_paths(temporary: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with private_directory() as directory:
        assert len(os.fsencode(f"{directory}/tokenizer-63")) <= MAX_SOCKET_PATH
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"{directory}/tokenizer-63")
        assert (Path(directory).parent == temporary) == (depth == 10)
    assert not os.path.exists(directory)
    assert not list(temporary.iterdir())
