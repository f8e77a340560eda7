"""The queue of services to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from minisgl_operator.queue import Key, WorkQueue

A, B = ("default", "a"), ("default", "b")


def run_queue(
    visit: Callable[[Key], Awaitable[float | None]],
    script: Callable[[WorkQueue], Awaitable[None]],
    workers: int = 2,
) -> None:
    """Run `script` beside the queue's workers, and end both."""

    async def both() -> None:
        queue = WorkQueue(visit, workers)
        task = asyncio.create_task(queue.run())
        try:
            async with asyncio.timeout(20):
                await script(queue)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(both())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_burst_of_events_is_one_look() -> None:
    seen: list[Key] = []

    async def visit(key: Key) -> None:
        seen.append(key)

    async def script(queue: WorkQueue) -> None:
        for _ in range(50):
            await queue.add(A, 0.05)
        await queue.add(B, 0.05)
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.1)

    run_queue(visit, script)
    assert sorted(seen) == [A, B]


def test_one_service_is_never_looked_at_twice_at_once_and_no_event_is_lost() -> None:
    running: set[Key] = set()
    visits: list[Key] = []
    release = asyncio.Event()

    async def visit(key: Key) -> None:
        assert key not in running
        running.add(key)
        visits.append(key)
        await release.wait()
        running.discard(key)

    async def script(queue: WorkQueue) -> None:
        await queue.add(A, 0)
        await until(lambda: visits == [A])
        await queue.add(A, 0)  # during the look: there must be another one
        await queue.add(B, 0)
        await until(lambda: visits == [A, B])
        release.set()
        await until(lambda: visits == [A, B, A])

    run_queue(visit, script, workers=3)


def test_the_sooner_date_counts() -> None:
    seen: list[Key] = []

    async def visit(key: Key) -> None:
        seen.append(key)

    async def script(queue: WorkQueue) -> None:
        await queue.add(A, 3600)
        await queue.add(A, 0.01)
        await queue.add(A, 1800)
        await until(lambda: seen == [A])

    run_queue(visit, script)


def test_a_visit_names_its_next_date() -> None:
    seen: list[Key] = []

    async def visit(key: Key) -> float | None:
        seen.append(key)
        return 0.01 if len(seen) < 3 else None

    async def script(queue: WorkQueue) -> None:
        await queue.add(A, 0)
        await until(lambda: len(seen) == 3)
        await asyncio.sleep(0.1)

    run_queue(visit, script)
    assert seen == [A, A, A]


def test_a_failed_visit_is_tried_again_and_holds_up_no_other() -> None:
    seen: list[Key] = []

    async def visit(key: Key) -> None:
        seen.append(key)
        if key == A and seen.count(A) == 1:
            raise OSError("the API server is away")

    async def script(queue: WorkQueue) -> None:
        await queue.add(A, 0)
        await until(lambda: seen == [A])
        await queue.add(B, 0)
        await until(lambda: seen == [A, B])
        await until(lambda: seen == [A, B, A])

    run_queue(visit, script, workers=1)
