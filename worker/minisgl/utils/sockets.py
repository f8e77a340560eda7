"""ZMQ pipes that never drop a message: PUSH to PULL, without a high-water mark."""

from __future__ import annotations

from typing import Any

import zmq


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
