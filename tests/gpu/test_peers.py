"""Collectives between GPUs, each way that there is, against sums made by hand; alone and in CUDA graphs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.distributed import Communicator, Messages
from minisgl.kernel import kernels_for
from support.ranks import run_ranks

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")

HIDDEN, WIDTH, ROWS, EPS = 520, 136, 24, 1e-5
DTYPE = torch.bfloat16
SIZES = [
    pytest.param(size, marks=pytest.mark.skipif(size > GPUS, reason=f"needs {size} GPUs")) for size in (2, 3, 4)
]
WAYS: dict[str, dict[str, Any]] = {
    "peer memory": {"messages": Messages(HIDDEN, WIDTH, ROWS, DTYPE)},
    "NCCL": {},
    "torch.distributed": {"pynccl": False},
}
TOKENS = (1, 2, 3, 5, 16, 17, 64, 129, 500, 512, 600, 4500)


def made(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", DTYPE)


def add_rms_norm(comm: Communicator, x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    summed = comm.add_rms_norm(x, residual, weight, EPS)
    if summed is not None:
        return summed
    normalized: Tensor = kernels_for(x).add_rms_norm(comm.all_reduce(x), residual, weight, EPS)
    return normalized


def _sums(comm: Communicator, mapped: bool) -> list[tuple[Any, Any]]:
    """Of every number of tokens, twice over, mixed with other collectives: the results, checked, on the host."""
    weight, found = made(99, HIDDEN), []
    probe = comm.add_rms_norm(made(0, 1, HIDDEN), made(0, 1, HIDDEN), weight, EPS)
    assert (probe is not None) == mapped, "the log says why memory cannot be mapped"
    for turn, tokens in enumerate((*TOKENS, *TOKENS[::-1])):
        parts = [made(10 * turn + rank, tokens, HIDDEN) for rank in range(comm.size)]
        residual = made(1000 + turn, tokens, HIDDEN)
        expected = sum(part.float() for part in parts) + residual.float()
        out = add_rms_norm(comm, parts[comm.rank].clone(), residual, weight)
        torch.testing.assert_close(residual.float(), expected, atol=0.1, rtol=0.02)
        reference = F.rms_norm(residual.float(), (HIDDEN,), weight.float(), EPS)
        torch.testing.assert_close(out.float(), reference, atol=0.05, rtol=0.02)
        found.append((out.float().cpu().numpy(), residual.float().cpu().numpy()))
        rows = 1 + turn % ROWS
        _divide(comm, turn, rows)
    return found


def _divide(comm: Communicator, seed: int, rows: int) -> None:
    columns = [made(seed + rank, rows, WIDTH) for rank in range(comm.size)]
    share = comm.share(rows)
    own = comm.exchange(columns[comm.rank])
    assert torch.equal(own, torch.cat(columns, dim=1)[share])
    everyone = torch.arange(rows, device="cuda") * 7 + seed
    assert torch.equal(comm.collect(everyone[share].clone(), rows), everyone)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_ranks_hold_the_same_bits(size: int, way: str) -> None:
    results = run_ranks(size, _sums, way == "peer memory", options=WAYS[way])
    for other in results[1:]:
        for mine, theirs in zip(itertools.chain(*results[0]), itertools.chain(*other), strict=True):
            assert (mine == theirs).all()


def _replays(comm: Communicator) -> None:
    """Graphs with odd numbers of collectives, replayed in changing order, with eager ones between."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    weight = made(99, HIDDEN)
    captured = {}
    with torch.cuda.stream(stream):
        for tokens in (1, 5, 64, 200):
            x, residual = torch.zeros(tokens, HIDDEN, device="cuda", dtype=DTYPE), made(5, tokens, HIDDEN)
            columns = torch.zeros(min(tokens, ROWS), WIDTH, device="cuda", dtype=DTYPE)
            numbers = torch.zeros(len(columns), device="cuda", dtype=torch.int64)
            add_rms_norm(comm, x.clone(), residual.clone(), weight)
            comm.exchange(columns)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                out = add_rms_norm(comm, x.clone(), residual, weight)
                for _ in range(2):
                    out = add_rms_norm(comm, out, residual, weight)
                own = comm.exchange(columns).clone()
                told = comm.collect(numbers[comm.share(len(columns))], len(columns))
            captured[tokens] = graph, x, residual, columns, own, numbers, told
        for turn in range(40):
            tokens = (1, 5, 64, 200)[turn * 7 // 3 % 4]
            graph, x, residual, columns, own, numbers, told = captured[tokens]
            parts = [made(100 * turn + rank, tokens, HIDDEN) for rank in range(comm.size)]
            begun = made(turn, tokens, HIDDEN)
            wide = [made(7 * turn + rank, *columns.shape) for rank in range(comm.size)]
            x.copy_(parts[comm.rank])
            residual.copy_(begun)
            columns.copy_(wide[comm.rank])
            numbers.copy_(torch.arange(len(columns)) * 7 + turn)
            graph.replay()
            expected = sum(part.float() for part in parts)
            stream_of = begun.float()
            for _ in range(3):
                stream_of = (stream_of + expected).to(DTYPE).float()
                expected = comm.size * F.rms_norm(stream_of, (HIDDEN,), weight.float(), EPS).to(DTYPE).float()
            torch.testing.assert_close(residual.float(), stream_of, atol=0.4, rtol=0.05)
            assert torch.equal(own, torch.cat(wide, dim=1)[comm.share(len(columns))])
            assert torch.equal(told, numbers)
            _divide(comm, turn, 1 + turn % ROWS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_graphs_replay_them(size: int, way: str) -> None:
    run_ranks(size, _replays, options=WAYS[way])
