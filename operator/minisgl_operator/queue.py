"""Which services to look at next: one entry a service however many events there were, and never two at once."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable

Key = tuple[str, str]
"""Namespace, name."""

COALESCE_SECONDS = 0.1
"""Events come in bursts; one look after the burst is enough."""
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0

log = logging.getLogger(__name__)


class WorkQueue:
    """`visit` looks at one service and returns the seconds until it wants to look again, or None.

    What `visit` raises is logged by the visitor's own means; the service is tried again, ever less often.
    """

    def __init__(self, visit: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        self._visit = visit
        self._workers = workers
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._running: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        """Services that wait now, those with a date in the future aside."""
        now = asyncio.get_running_loop().time()
        return sum(due <= now for due in self._due.values())

    async def add(self, key: Key, delay: float = COALESCE_SECONDS) -> None:
        """Look at the service after `delay` seconds, or sooner if that was planned already."""
        due = asyncio.get_running_loop().time() + delay
        async with self._changed:
            if key not in self._due or due < self._due[key]:
                self._due[key] = due
                heapq.heappush(self._heap, (due, key))
                self._changed.notify_all()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._next()
            try:
                again = await self._visit(key)
                self._failures.pop(key, None)
            except Exception:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = min(FIRST_RETRY_SECONDS * 2.0 ** (failures - 1), LAST_RETRY_SECONDS)
                log.debug("%s/%s: again in %g s", *key, again)
            async with self._changed:
                self._running.discard(key)
                self._changed.notify_all()
            if again is not None:
                await self.add(key, again)

    async def _next(self) -> Key:
        """The service that is due first and that no one looks at; waits for one."""
        loop = asyncio.get_running_loop()
        async with self._changed:
            while True:
                skipped: list[tuple[float, Key]] = []
                wait: float | None = None
                found: Key | None = None
                while self._heap and found is None and wait is None:
                    due, key = self._heap[0]
                    if self._due.get(key) != due:  # planned anew since
                        heapq.heappop(self._heap)
                    elif due > loop.time():
                        wait = due - loop.time()
                    elif key in self._running:
                        skipped.append(heapq.heappop(self._heap))
                    else:
                        heapq.heappop(self._heap)
                        found = key
                for entry in skipped:
                    heapq.heappush(self._heap, entry)
                if found is not None:
                    del self._due[found]
                    self._running.add(found)
                    return found
                try:
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                except TimeoutError:
                    pass
