"""What both processes of this room do all the time: read frames, and show that they are alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from minisgl.message import Heartbeat, encode

HEARTBEAT_SECONDS = 1.0


def serve(inbox: Any, api: Any, name: str, handle: Callable[[bytes], None]) -> None:
    """Hand every frame of `inbox` to `handle`, for ever; tell `api` now and every second that `name` is ready."""
    next_beat = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= next_beat:
            api.send(encode(Heartbeat(process=name)))
            next_beat = now + HEARTBEAT_SECONDS
        if inbox.poll(int((next_beat - now) * 1000) + 1):
            handle(inbox.recv())
