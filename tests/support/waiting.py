"""Waiting for what a test has set in motion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")
POLL_SECONDS = 0.2


def until(look: Callable[[], _T | None], what: str, seconds: float, state: Callable[[], Any] = lambda: "") -> _T:
    """What `look` gives, once it gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds:.0f} s; there is {state()}")
        time.sleep(POLL_SECONDS)
