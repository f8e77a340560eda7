"""The two loops around a scheduler and its executor. Both give the same tokens."""

from __future__ import annotations

import time
from typing import Protocol

from minisgl.core.batch import Executor, PendingStep
from minisgl.message import Round
from minisgl.scheduler.scheduler import Scheduler, Step

MOST_PATIENCE = 0.02
"""Seconds, also where the last steps took longer, or came after a pause."""


class Endpoint(Protocol):
    """Where a loop's messages come from, and where its output goes."""

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:
        """What arrived since the last call, or arrives within `patience` seconds.

        With `block`, wait for something, or for about a second.
        """
        ...

    def send(self, scheduler: Scheduler) -> None:
        """Pass on ``scheduler.take_output()`` and what else is due."""
        ...


def normal_loop(scheduler: Scheduler, executor: Executor, endpoint: Endpoint) -> None:
    """Schedule a step, run it, take its tokens; then the next. Returns when a `Round` says stop."""
    chores = True
    while True:
        arrived, chores = _receive(scheduler, executor, endpoint, idle=not scheduler.has_work, chores=chores)
        for message in arrived.messages:
            scheduler.handle(message)
        step = scheduler.schedule()
        if step is not None:
            pending = executor.launch(step.batch)
            scheduler.complete(step, pending.tokens(), pending.scores())
        endpoint.send(scheduler)
        if arrived.stop:
            return


def overlap_loop(scheduler: Scheduler, executor: Executor, endpoint: Endpoint) -> None:
    """Launch a step before the tokens of the one before are read, so that the device never waits for the host.

    The host's work of a step (messages, scheduling, output) hides behind the device's. The price: a request that
    ends on a token of the last step may be in the launched one already; its extra token is dropped.

    While the device is busy, the masks of requests with a grammar are waited for, so that these can be in the next
    step: for half of what a step took, so that the next one is launched in time.
    """
    last: tuple[Step, PendingStep] | None = None
    chores = True
    clock = _Clock()
    while True:
        idle = last is None and not scheduler.has_work
        patience = clock.patience() if last is not None and scheduler.awaits_masks else 0.0
        arrived, chores = _receive(scheduler, executor, endpoint, idle=idle, chores=chores, patience=patience)
        for message in arrived.messages:
            scheduler.handle(message)
        step = scheduler.schedule()
        pending = (step, executor.launch(step.batch)) if step is not None else None
        if last is not None:
            scheduler.complete(last[0], last[1].tokens(), last[1].scores())
            clock.tick()
        last = pending
        endpoint.send(scheduler)
        if arrived.stop and last is None:
            return


class _Clock:
    """Of steps that follow each other."""

    def __init__(self) -> None:
        self._last = self._took = self._took_before = 0.0

    def tick(self) -> None:
        """A step is complete."""
        now = time.perf_counter()
        self._last, self._took, self._took_before = now, now - self._last, self._took

    def patience(self) -> float:
        """Seconds for which a step that has just begun will still run, if it takes as long as the last two did."""
        return min(self._took / 2, self._took_before / 2, MOST_PATIENCE)


def _receive(
    scheduler: Scheduler,
    executor: Executor,
    endpoint: Endpoint,
    *,
    idle: bool,
    chores: bool,
    patience: float = 0.0,
) -> tuple[Round, bool]:
    """What arrived, and whether the executor still has `chores`.

    It does one when an idle loop is sent nothing, and no request waits for masks. They depend on the rounds alone,
    so that every rank does the same one at the same time.
    """
    does_one = idle and chores and not scheduler.awaits_masks
    arrived = endpoint.receive(block=idle and not does_one, patience=patience)
    if does_one and not (arrived.messages or arrived.stop):
        chores = executor.idle()
    return arrived, chores
