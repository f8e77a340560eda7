"""The two loops around a scheduler and its executor. Both give the same tokens."""

from __future__ import annotations

from typing import Protocol

from minisgl.core.batch import Executor, PendingStep
from minisgl.message import Round
from minisgl.scheduler.scheduler import Scheduler, Step


class Endpoint(Protocol):
    """Where a loop's messages come from, and where its output goes."""

    def receive(self, *, block: bool) -> Round:
        """What arrived since the last call. With `block`, wait for something, or for about a second."""
        ...

    def send(self, scheduler: Scheduler) -> None:
        """Pass on ``scheduler.take_output()`` and what else is due."""
        ...


def normal_loop(scheduler: Scheduler, executor: Executor, endpoint: Endpoint) -> None:
    """Schedule a step, run it, take its tokens; then the next. Returns when a `Round` says stop."""
    chores = True
    while True:
        arrived, chores = _receive(endpoint, executor, idle=not scheduler.has_work, chores=chores)
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
    """
    last: tuple[Step, PendingStep] | None = None
    chores = True
    while True:
        idle = last is None and not scheduler.has_work
        arrived, chores = _receive(endpoint, executor, idle=idle, chores=chores)
        for message in arrived.messages:
            scheduler.handle(message)
        step = scheduler.schedule()
        launched = (step, executor.launch(step.batch)) if step is not None else None
        if last is not None:
            scheduler.complete(last[0], last[1].tokens(), last[1].scores())
        last = launched
        endpoint.send(scheduler)
        if arrived.stop and last is None:
            return


def _receive(endpoint: Endpoint, executor: Executor, *, idle: bool, chores: bool) -> tuple[Round, bool]:
    """What arrived, and whether the executor still has `chores`: it does one when an idle loop is sent nothing.

    They depend on the rounds alone, so that every rank does the same one at the same time.
    """
    arrived = endpoint.receive(block=idle and not chores)
    if idle and chores and not (arrived.messages or arrived.stop):
        chores = executor.idle()
    return arrived, chores
