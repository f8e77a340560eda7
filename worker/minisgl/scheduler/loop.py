"""The two loops around a scheduler and its executor. Both give the same tokens."""

from __future__ import annotations

import time
from typing import Protocol

from minisgl.core.batch import Executor, PendingStep
from minisgl.message import Round
from minisgl.scheduler.scheduler import Scheduler, Step

MOST_PATIENCE = 0.02
"""Seconds, also where the device was busy for longer."""
PATIENCE = 0.75
"""The share of the time to spare that is spent on waiting for masks."""


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
    step: for less than the time to spare, so that the next one is launched before the device has done this one.
    """
    last: tuple[Step, PendingStep] | None = None
    chores = True
    spare = _Spare()
    while True:
        idle = last is None and not scheduler.has_work
        patience = spare.patience() if last is not None and scheduler.awaits_masks else 0.0
        begun = time.perf_counter()
        arrived, chores = _receive(scheduler, executor, endpoint, idle=idle, chores=chores, patience=patience)
        waited = time.perf_counter() - begun if patience else 0.0
        for message in arrived.messages:
            scheduler.handle(message)
        step = scheduler.schedule()
        pending = (step, executor.launch(step.batch)) if step is not None else None
        if last is not None:
            begun = time.perf_counter()
            tokens = last[1].tokens()
            spare.add(waited + time.perf_counter() - begun)
            scheduler.complete(last[0], tokens, last[1].scores())
        last = pending
        endpoint.send(scheduler)
        if arrived.stop and last is None:
            return


class _Spare:
    """The time in which the host had nothing to do but to wait, for masks or for the device."""

    def __init__(self) -> None:
        self._last = self._before = 0.0

    def add(self, seconds: float) -> None:
        """Of a further turn of the loop."""
        self._last, self._before = seconds, self._last

    def patience(self) -> float:
        """Seconds that can be waited in a turn that is like the last two: a prefill may be among them."""
        return min(PATIENCE * min(self._last, self._before), MOST_PATIENCE)


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
