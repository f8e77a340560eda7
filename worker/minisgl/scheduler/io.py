"""A rank's messages: rank 0 reads the sockets and tells the others, which read only what rank 0 tells them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import zmq

from minisgl.core.config import Addresses, EngineLimits
from minisgl.message import (
    Decoder,
    Heartbeat,
    Round,
    SchedulerReady,
    SchedulerStats,
    ToScheduler,
    encode,
)
from minisgl.scheduler.scheduler import Scheduler
from minisgl.utils.sockets import pull_socket, push_socket

IDLE_SECONDS = 1.0
"""How long an idle rank 0 waits before it goes round all the same, so that every rank's heart beats."""
STATS_SECONDS = 0.1
"""Least time between two reports of a busy scheduler."""


class Broadcaster:
    """Rank 0's pipes to the other ranks. A pipe a rank: nothing is dropped or overtaken."""

    def __init__(self, context: zmq.Context[Any], addresses: Addresses, tp_size: int) -> None:
        self._sockets = [push_socket(context, addresses.rank(rank), bind=True) for rank in range(1, tp_size)]

    def send(self, arrived: Round) -> None:
        if self._sockets:
            frame = encode(arrived)
            for socket in self._sockets:
                socket.send(frame)


class Heart:
    """Tells the API server about once a second that this process goes round."""

    def __init__(self, api: Any, process: str) -> None:
        self._api = api
        self._frame = encode(Heartbeat(process=process))
        self._next = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + IDLE_SECONDS
            self._api.send(self._frame)


class RankZeroEndpoint:
    """Rank 0: requests in from tokenizers, tokens out to the detokenizer, reports to the API server."""

    def __init__(self, addresses: Addresses, tp_size: int, process: str) -> None:
        context: zmq.Context[Any] = zmq.Context.instance()
        self._inbox = pull_socket(context, addresses.scheduler)
        self._broadcaster = Broadcaster(context, addresses, tp_size)
        self._detokenizer = push_socket(context, addresses.detokenizer)
        self._api = push_socket(context, addresses.api)
        self._heart = Heart(self._api, process)
        self._decode: Decoder[ToScheduler] = Decoder(ToScheduler)
        self._reported = SchedulerStats()
        self._next_report = 0.0

    def announce(self, limits: EngineLimits, phases: dict[str, float]) -> None:
        """Requests may come from now on."""
        self._api.send(encode(SchedulerReady(limits=limits, phases=phases)))

    def receive(self, *, block: bool) -> Round:
        messages: list[ToScheduler] = []
        if not block or self._inbox.poll(IDLE_SECONDS * 1000):
            messages = [self._decode(frame) for frame in drain(self._inbox)]
        arrived = Round(messages=messages)
        self._broadcaster.send(arrived)
        self._heart.beat()
        return arrived

    def send(self, scheduler: Scheduler) -> None:
        output = scheduler.take_output()
        if output is not None:
            self._detokenizer.send(encode(output))
        now = time.monotonic()
        if now >= self._next_report or not scheduler.has_work:
            stats = scheduler.stats
            if stats != self._reported:
                self._api.send(encode(stats))
                self._reported = stats
            self._next_report = now + STATS_SECONDS


class RankEndpoint:
    """Any other rank: hears rank 0, says nothing but that it lives."""

    def __init__(self, addresses: Addresses, rank: int, process: str) -> None:
        context: zmq.Context[Any] = zmq.Context.instance()
        self._inbox = pull_socket(context, addresses.rank(rank), bind=False)
        self._heart = Heart(push_socket(context, addresses.api), process)
        self._decode: Decoder[Round] = Decoder(Round)

    def receive(self, *, block: bool) -> Round:  # noqa: ARG002  rank 0 sends a round a step, whether or not it had to wait
        arrived = self._decode(self._inbox.recv())
        self._heart.beat()
        return arrived

    def send(self, scheduler: Scheduler) -> None:
        scheduler.take_output()


def drain(socket: Any) -> Sequence[bytes]:
    """Every frame that has arrived, in order, without waiting."""
    frames = []
    while True:
        try:
            frames.append(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return frames
