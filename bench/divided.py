"""What a sum over ranks takes when they divide a long step's rows: how much longer the products around it take."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minisgl.distributed import Communicator, Division
from minisgl.models.config import ModelConfig

DTYPE = torch.bfloat16
EPS = 1e-6
LAYERS = 4
"""Timed together."""


class Layer(NamedTuple):
    """One rank's part of a dense layer: features of its products."""

    hidden: int
    attention: int
    """Into the output projection."""
    qkv: int
    intermediate: int

    @staticmethod
    def of(config: ModelConfig, tp: int) -> Layer:
        heads, kv_heads = config.num_heads // tp, max(config.num_kv_heads // tp, 1)
        return Layer(
            config.hidden_size,
            heads * config.head_dim,
            (heads + 2 * kv_heads) * config.head_dim,
            -(-config.intermediate_size // tp),
        )


class _Products:
    """A layer without what is between its products, some layers one after the other."""

    def __init__(self, layer: Layer, tokens: int) -> None:
        hidden, attention, qkv, intermediate = layer
        self.tokens = tokens
        self.weights = [
            torch.randn(shape, dtype=DTYPE, device="cuda") * 0.02
            for shape in ((qkv, hidden), (hidden, attention), (2 * intermediate, hidden), (hidden, intermediate))
        ]
        self.mixed = torch.randn(tokens, attention, dtype=DTYPE, device="cuda")
        self.inner = torch.randn(tokens, intermediate, dtype=DTYPE, device="cuda")
        # No zeros: products of those take less power, and so less time.
        self.stream = torch.randn(tokens, hidden, dtype=DTYPE, device="cuda")
        self.norm = torch.ones(hidden, dtype=DTYPE, device="cuda")

    def alone(self) -> None:
        for _ in range(LAYERS):
            for x, weight in zip((self.stream, self.mixed, self.stream, self.inner), self.weights, strict=True):
                torch.mm(x, weight.t())

    def divided(self, division: Division) -> None:
        qkv, output, gate_up, down = self.weights
        residual = self.stream[division.own]
        for _ in range(LAYERS):
            self._scatter(self.mixed, output, residual, division)
            self._gather(gate_up, division)
            self._scatter(self.inner, down, residual, division)
            self._gather(qkv, division)

    def _scatter(self, x: Tensor, weight: Tensor, residual: Tensor, division: Division) -> None:
        for rank, rows in division.others:
            torch.mm(x[rows], weight.t(), out=division.summand(rank))
            division.send(rank)
        division.add_rms_norm(torch.mm(x[division.own], weight.t()), residual, self.norm, EPS)

    def _gather(self, weight: Tensor, division: Division) -> None:
        result = division.normalized.new_empty((self.tokens, len(weight)))
        for rows in division.arrivals():
            torch.mm(division.normalized[rows], weight.t(), out=result[rows])


def time_divided(comm: Communicator, layer: Layer, tokens: int, runs: int) -> float | None:
    """Microseconds of one sum; None where ranks do not divide so many rows."""
    division = comm.divide(tokens)
    if division is None:
        return None
    products = _Products(layer, tokens)
    with torch.inference_mode():
        alone = _time(products.alone, runs)
        divided = _time(lambda: products.divided(division), runs)
    return (divided - alone) / (2 * LAYERS)


def _time(work: Callable[[], None], runs: int) -> float:
    """Microseconds, the median."""
    times = []
    for _ in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return float(statistics.median(times[2:]))
