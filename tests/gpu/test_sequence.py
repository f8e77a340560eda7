"""Rows that ranks divide: sums against those made by hand, however far one rank is behind another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.distributed import Communicator, Messages
from minisgl.distributed.sequence import LEAST_ROWS
from support.ranks import run_ranks

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")

HIDDEN, EPS, MOST = 520, 1e-5, 6000
DTYPE = torch.bfloat16
SIZES = [
    pytest.param(size, marks=pytest.mark.skipif(size > GPUS, reason=f"needs {size} GPUs")) for size in (2, 3, 4)
]
OPTIONS: dict[str, Any] = {"messages": Messages(HIDDEN, 136, 24, DTYPE, MOST)}
SUMS = 7
"""Of a step, one after the other."""
LATE = 3_000_000
"""Clock cycles that a rank is late, at most: some milliseconds."""


def made(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", DTYPE)


def summand_of(rank: int, normalized: Tensor) -> Tensor:
    """What a rank makes of each row: another for each rank, and exact."""
    return normalized.roll(rank + 1, dims=1) * (0.5 if rank % 2 else -0.25)


def expected_of(x: list[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream and what is normalized of it, after all sums of a step."""
    stream = torch.zeros_like(x[0])
    for _ in range(SUMS):
        total = torch.zeros(x[0].shape, device="cuda")
        for part in x:
            total += part.float()
        stream = (stream.float() + total).to(DTYPE)
        normalized = F.rms_norm(stream.float(), (HIDDEN,), weight.float(), EPS).to(DTYPE)
        x = [summand_of(rank, normalized) for rank in range(len(x))]
    return stream, normalized


def _steps(comm: Communicator) -> list[Any]:
    """Of steps of several lengths: what is normalized at the end, checked, on the host."""
    draw, weight, found = random.Random(comm.rank), made(99, HIDDEN), []
    assert comm.divide(LEAST_ROWS - 1) is None
    assert comm.divide(MOST + 1000) is None
    for turn, tokens in enumerate((LEAST_ROWS, MOST, 2500, LEAST_ROWS, 3333, 4096)):
        x = [made(10 * turn + rank, tokens, HIDDEN) for rank in range(comm.size)]
        stream, expected = expected_of(x, weight)
        division = comm.divide(tokens)
        assert division is not None, "the log says why memory cannot be mapped"
        residual = torch.zeros_like(stream[division.own])
        for rank, rows in division.others:
            division.summand(rank).copy_(x[comm.rank][rows])
            division.send(rank)
        own = x[comm.rank][division.own]
        for number in range(SUMS):
            torch.cuda._sleep(draw.randrange(LATE))  # type: ignore[no-untyped-call]
            division.add_rms_norm(own, residual, weight, EPS)
            normalized = torch.full_like(division.normalized, torch.nan)
            for rows in division.arrivals():
                normalized[rows] = division.normalized[rows]
            if number + 1 < SUMS:
                for rank, rows in division.others:
                    torch.cuda._sleep(draw.randrange(LATE))  # type: ignore[no-untyped-call]
                    division.summand(rank).copy_(summand_of(comm.rank, normalized[rows]))
                    division.send(rank)
                own = summand_of(comm.rank, normalized[division.own])
        torch.testing.assert_close(residual.float(), stream[division.own].float(), atol=0.1, rtol=0.02)
        torch.testing.assert_close(normalized.float(), expected.float(), atol=0.05, rtol=0.02)
        found.append(normalized.float().cpu().numpy())
        # Other collectives go on between, with buffers of their own.
        assert comm.collect(torch.arange(5, device="cuda")[comm.share(5)].clone(), 5).tolist() == [0, 1, 2, 3, 4]
    return found


@pytest.mark.parametrize("size", SIZES)
def test_ranks_hold_the_same_bits(size: int) -> None:
    results = run_ranks(size, _steps, options=OPTIONS)
    for other in results[1:]:
        assert all((mine == theirs).all() for mine, theirs in zip(results[0], other, strict=True))


def _abandoned(comm: Communicator) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        _wait_in_vain(comm)


def _wait_in_vain(comm: Communicator) -> None:
    division, weight = comm.divide(MOST), made(2, HIDDEN)
    assert division is not None
    residual = made(1, MOST, HIDDEN)[division.own]
    own = torch.zeros_like(residual)
    for turn in range(2):  # kernels are loaded in the first turn, which would wait for one that runs
        if turn and comm.rank:
            return
        for rank, _ in division.others if turn == 0 else ():
            division.send(rank)
        division.add_rms_norm(own, residual, weight, EPS)
        for _ in division.arrivals():
            pass
        if turn == 0:
            torch.cuda.synchronize()
    assert not torch.cuda.current_stream().query()  # it waits
    comm.abandon()
    torch.cuda.synchronize()


def test_what_waits_for_a_lost_rank_ends() -> None:
    run_ranks(2, _abandoned, options=OPTIONS)
