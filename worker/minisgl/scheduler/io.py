"""A rank's messages: rank 0 reads the sockets and tells the others, which read only what rank 0 tells them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq

from minisgl.core.config import Addresses, EngineLimits
from minisgl.message import (
    Decoder,
    GrammarBuilt,
    Heartbeat,
    MasksBuilt,
    Round,
    SchedulerReady,
    SchedulerStats,
    StepDigest,
    ToScheduler,
    Watch,
    encode,
)
from minisgl.scheduler.recorder import Recorder
from minisgl.scheduler.scheduler import Scheduler
from minisgl.utils.sockets import pull_socket, push_socket

IDLE_SECONDS = 1.0
"""How long an idle rank 0 waits before it goes round all the same, so that every rank is seen to."""
BEAT_SECONDS = 1.0
"""Time between two heartbeats."""
STATS_SECONDS = 0.1
"""Least time between two reports of a busy scheduler."""


class Broadcaster:
    """Rank 0's pipes to the other ranks. A pipe a rank: nothing is dropped or overtaken."""

    def __init__(self, context: zmq.Context[Any], addresses: Addresses, tp_size: int) -> None:
        self._sockets = [push_socket(context, addresses.rank(rank), bind=True) for rank in range(1, tp_size)]

    def ready(self) -> bool:
        """Whether all are there, and `send` would not have to wait."""
        return all(socket.poll(0, zmq.POLLOUT) for socket in self._sockets)

    def send(self, message: Round | StepDigest, *, wait: bool = True) -> None:
        """To all. Waits for those that have not come yet; without `wait`, raises `zmq.Again` instead."""
        if self._sockets:
            frame = encode(message)
            for socket in self._sockets:
                socket.send(frame, 0 if wait else zmq.NOBLOCK)


class Heart:
    """Tells the API server every second that this process lives, and how often its loop has gone round.

    A thread does, so that a rank that waits for another in a step is not taken for the one that hangs.
    """

    def __init__(self, context: zmq.Context[Any], addresses: Addresses, process: str) -> None:
        self.rounds = 0
        threading.Thread(target=self._beat, args=(context, addresses, process), daemon=True).start()

    def _beat(self, context: zmq.Context[Any], addresses: Addresses, process: str) -> None:
        api = push_socket(context, addresses.api)
        while True:
            api.send(encode(Heartbeat(process=process, rounds=self.rounds)))
            time.sleep(BEAT_SECONDS)


class RankZeroEndpoint:
    """Rank 0: requests in from tokenizers, tokens out to the detokenizer, reports to the API server."""

    def __init__(self, addresses: Addresses, tp_size: int, process: str, recorder: Recorder | None = None) -> None:
        context: zmq.Context[Any] = zmq.Context.instance()
        self._inbox = pull_socket(context, addresses.scheduler)
        self._to_itself = push_socket(context, addresses.scheduler)
        self._lock = threading.Lock()
        """For the socket that other threads send on."""
        self._broadcaster = Broadcaster(context, addresses, tp_size)
        self._detokenizer = push_socket(context, addresses.detokenizer)
        self._api = push_socket(context, addresses.api)
        self._heart = Heart(context, addresses, process)
        self._decode: Decoder[ToScheduler] = Decoder(ToScheduler)
        self._reported = SchedulerStats()
        self._next_report = 0.0
        self._recorder = recorder
        self._watched_until = 0.0

    def announce(self, limits: EngineLimits, phases: dict[str, float]) -> None:
        """Requests may come from now on."""
        self._api.send(encode(SchedulerReady(limits=limits, phases=phases)))

    def grammar_built(self, uid: int) -> None:
        """For the threads that read grammars: tell the loop as others do, so that all ranks hear of it at once."""
        self._tell_itself(GrammarBuilt(uid=uid))

    def masks_built(self, number: int) -> None:
        """The same, for those that work out masks."""
        self._tell_itself(MasksBuilt(number=number))

    def _tell_itself(self, message: GrammarBuilt | MasksBuilt) -> None:
        with self._lock:
            self._to_itself.send(encode(message))

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:
        arrived = Round(messages=[])
        if self._inbox.poll(int((IDLE_SECONDS if block else patience) * 1000)):
            for frame in drain(self._inbox):
                message = self._decode(frame)
                if isinstance(message, Watch):
                    self._watched_until = time.monotonic() + message.seconds
                else:
                    arrived.messages.append(message)
        self._broadcaster.send(arrived)
        self._heart.rounds += 1
        return arrived

    def exchange(self, digest: StepDigest) -> StepDigest:
        """Tell the other ranks what this one is about to compute."""
        self._broadcaster.send(digest)
        return digest

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
            if now < self._watched_until and self._recorder is not None:
                timeline = self._recorder.take()
                if timeline is not None:
                    self._api.send(encode(timeline))
            self._next_report = now + STATS_SECONDS


class RankEndpoint:
    """Any other rank: hears rank 0, says nothing but that it lives."""

    def __init__(self, addresses: Addresses, rank: int, process: str) -> None:
        context: zmq.Context[Any] = zmq.Context.instance()
        self._inbox = pull_socket(context, addresses.rank(rank), bind=False)
        self._heart = Heart(context, addresses, process)
        self._decode: Decoder[Round] = Decoder(Round)
        self._decode_digest: Decoder[StepDigest] = Decoder(StepDigest)

    def grammar_built(self, uid: int) -> None:
        """Rank 0 says when its own threads are ready; this rank waits for its own then, if it must."""

    def masks_built(self, number: int) -> None:
        """As `grammar_built`."""

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002  rank 0 waits, if it must
        arrived = self._decode(self._inbox.recv())
        self._heart.rounds += 1
        return arrived

    def exchange(self, digest: StepDigest) -> StepDigest:  # noqa: ARG002  rank 0's is all that is asked for
        """What rank 0 is about to compute after the same round."""
        return self._decode_digest(self._inbox.recv())

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
