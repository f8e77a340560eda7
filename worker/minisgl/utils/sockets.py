"""ZMQ pipes that never drop a message, PUSH to PULL without a high-water mark, and where their paths lie."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import zmq

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux, without the final zero (unix(7))."""
_LONGEST_NAME = "/tokenizer-999"


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """A new directory for the sockets of one launch (mode 0700), removed at the end.

    It is where temporary files go, or in /tmp when a socket's path would be too long there.
    """
    directory = tempfile.mkdtemp(prefix="minisgl-")
    if len(os.fsencode(directory + _LONGEST_NAME)) > MAX_SOCKET_PATH:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="minisgl-", dir="/tmp")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def push_socket(context: zmq.Context[Any], address: str, *, bind: bool = False) -> Any:
    """The sending end. Messages sent before the other end exists wait for it."""
    return _open(context, zmq.PUSH, address, bind)


def pull_socket(context: zmq.Context[Any], address: str, *, bind: bool = True) -> Any:
    """The receiving end."""
    return _open(context, zmq.PULL, address, bind)


def _open(context: zmq.Context[Any], kind: int, address: str, bind: bool) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    if bind:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket
