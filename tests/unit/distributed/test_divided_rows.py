"""Rows that any number of ranks divide: threads for GPUs, and copies in this process that come late."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.distributed import sequence
from minisgl.distributed.sequence import LEAST_ROWS, SequenceParallel, room_for

SIZE, EPS = 8, 1e-5
MOST = LEAST_ROWS + 500
SUMS = 6
DEADLINE = 30
"""Seconds that a flag may take."""
LATE = 0.002
"""Seconds that a copy may be late."""


class CopyEngine:
    """In place of a CUDA stream: a thread that does one thing after the other, when it gets to it."""

    every: dict[int, CopyEngine] = {}  # noqa: RUF012

    def __init__(self, *_: object) -> None:
        self.cuda_stream = len(self.every) + 1
        self.every[self.cuda_stream] = self
        self.queue: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self.draw = random.Random(self.cuda_stream)
        threading.Thread(target=self._run, daemon=True).start()

    def wait_event(self, event: object) -> None:
        """What the rank has done before is done: nothing else of this test is late."""

    def _run(self) -> None:
        while (work := self.queue.get()) is not None:
            time.sleep(self.draw.random() * LATE)
            work[0](*work[1:])


def call_driver(name: str, *arguments: Any) -> None:
    if name == "cuMemcpyAsync":
        target, source, size, stream = (argument.value for argument in arguments)
        CopyEngine.every[stream].queue.put((ctypes.memmove, target, source, size))
    else:
        assert name == "cuStreamWriteValue32_v2"
        stream, flag, value, _ = (argument.value for argument in arguments)
        CopyEngine.every[stream].queue.put((ctypes.memmove, flag, ctypes.byref(ctypes.c_uint32(value)), 4))


class Kernels:
    """The reference of `minisgl.kernel.sequence`."""

    @staticmethod
    def await_flag(flag: Tensor, count: int) -> None:
        begun = time.monotonic()
        while (int(flag) - count + 2**31) % 2**32 < 2**31:  # a signed difference
            assert time.monotonic() - begun < DEADLINE, "a rank waits in vain"
            time.sleep(0)

    @staticmethod
    def add_rms_norm_of_share(
        own: Tensor, summands: Tensor, rank: int, residual: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> None:
        others = list(summands[:, : len(own)])
        for summand in (*others[:rank], own, *others[rank:]):
            residual += summand
        out.copy_(F.rms_norm(residual, weight.shape, weight, eps))


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Event:
        def record(self, stream: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Stream", CopyEngine)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(sequence, "call_driver", call_driver)
    monkeypatch.setattr(sequence, "kernels_for", lambda x, room: Kernels)  # noqa: ARG005
    CopyEngine.every.clear()
    yield
    for engine in CopyEngine.every.values():
        engine.queue.put(None)


def summand_of(rank: int, normalized: Tensor) -> Tensor:
    """What a rank makes of each row: another for each rank."""
    return normalized.roll(rank + 1, dims=1) * (0.5 + rank)


def expected_of(x: list[Tensor], weight: Tensor) -> Tensor:
    residual = torch.zeros_like(x[0])
    for _ in range(SUMS):
        for part in x:
            residual += part
        normalized = F.rms_norm(residual, (SIZE,), weight, EPS)
        x = [summand_of(rank, normalized) for rank in range(len(x))]
    return normalized


def run(parallel: SequenceParallel, steps: list[list[Tensor]], weight: Tensor) -> list[Tensor]:
    """What this rank has at the end of each step; `steps`: what every rank adds at its beginning."""
    found = []
    for step in steps:
        x = step[parallel.rank]
        division = parallel.divide(len(x))
        assert division is not None
        for rank, rows in division.others:
            division.summand(rank).copy_(x[rows])
            division.send(rank)
        own = x[division.own]
        residual = torch.zeros_like(own)
        for number in range(SUMS):
            division.add_rms_norm(own, residual, weight, EPS)
            arrived = torch.full_like(division.normalized, torch.nan)
            for rows in division.arrivals():
                arrived[rows] = division.normalized[rows]
                if number % 2 and number + 1 < SUMS:  # as a mixture of experts: row by row
                    for rank in (rank for rank, theirs in division.others if theirs == rows):
                        division.summand(rank).copy_(summand_of(parallel.rank, arrived[rows]))
                        division.send(rank)
            if not number % 2:  # as attention: all rows first
                for rank, rows in division.others:
                    division.summand(rank).copy_(summand_of(parallel.rank, arrived[rows]))
                    division.send(rank)
            own = summand_of(parallel.rank, arrived[division.own])
        found.append(arrived)
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
def test_every_rank_has_the_sums_of_all(ranks: int) -> None:
    room = room_for(MOST, ranks, SIZE, torch.float32)
    buffers = [torch.zeros(room.offsets(ranks)[-1], dtype=torch.uint8) for _ in range(ranks)]
    addresses = [buffer.data_ptr() for buffer in buffers]
    every = [SequenceParallel(rank, buffers[rank], addresses, room) for rank in range(ranks)]
    for parallel in every:
        parallel.count = 2**31 - 9  # they overflow on the way
        parallel.flags.fill_(2**31 - 9)
    generator = torch.Generator().manual_seed(ranks)
    weight = torch.rand(SIZE, generator=generator) + 0.5
    steps = [
        [torch.randn(tokens, SIZE, generator=generator) for _ in range(ranks)]
        for tokens in (LEAST_ROWS, MOST, LEAST_ROWS + 7)
    ]
    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(lambda parallel: run(parallel, steps, weight), every))
    for result in results:
        for mine, first, step in zip(result, results[0], steps, strict=True):
            assert torch.equal(mine, first)
            torch.testing.assert_close(mine, expected_of(step, weight), rtol=1e-4, atol=1e-4)


def test_steps_that_are_not_divided() -> None:
    room = room_for(MOST, 3, SIZE, torch.float32)
    own = torch.zeros(room.offsets(3)[-1], dtype=torch.uint8)
    parallel = SequenceParallel(0, own, [own.data_ptr()] * 3, room)
    assert parallel.divide(LEAST_ROWS - 1) is None
    assert parallel.divide(MOST + 100) is None
    many = SequenceParallel(0, own, [own.data_ptr()] * 40, room)
    assert many.divide(LEAST_ROWS) is None  # the last ranks would have no rows
    assert room_for(LEAST_ROWS - 1, 3, SIZE, torch.float32).rows == 0
