"""The end of a worker that was told to end: nothing that was accepted is lost, as far as time allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from minisgl.server.errors import unavailable
from minisgl.server.frontend import Frontend
from minisgl.server.readiness import Phase

logger = logging.getLogger("minisgl.server")


class Drain:
    """Waits for the order to end, then for the requests in flight."""

    def __init__(self, frontend: Frontend, *, grace: float, timeout: float) -> None:
        self._frontend = frontend
        self._grace = grace
        self._timeout = timeout
        self._begun = asyncio.Event()
        self._hurry = asyncio.Event()

    def begin(self, *, hurry: bool = False) -> None:
        """End from now on. With `hurry`, refuse new requests at once instead of after the grace time."""
        self._begun.set()
        if hurry:
            self._hurry.set()

    async def finished(self) -> None:
        """Returns when the server should stop."""
        await self._begun.wait()
        readiness = self._frontend.readiness
        if readiness.limits is None:
            return  # still loading: nothing can be in flight
        readiness.phase = Phase.DRAINING
        logger.info(
            "draining: new requests are served for another %g s", 0 if self._hurry.is_set() else self._grace
        )
        await _within(self._hurry.wait(), self._grace)
        readiness.phase = Phase.REFUSING
        if not await _within(self._frontend.idle(), self._timeout):
            logger.warning("requests are still in flight after %g s: they are given up", self._timeout)
            self._frontend.fail_all(unavailable("the server is shutting down", code="shutting_down"))


async def _within(waiting: Coroutine[Any, Any, object], seconds: float) -> bool:
    """Whether `waiting` ended in time."""
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return False
    return True
