"""Divides the rows of every step among ranks on a CPU, as `minisgl.distributed.sequence` does on GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.distributed import Communicator, Division


class Dividing(Communicator):
    """Its ranks divide every step."""

    def __init__(self, comm: Communicator, size: int) -> None:
        """`size`: of a row."""
        super().__init__(comm.rank, comm.size)
        self._collectives, self._size = comm, size

    def divide(self, tokens: int) -> Division:
        return _Collective(self._collectives, tokens, self._size)


class _Collective:
    """What was not sent, or has not been waited for, is not a number."""

    def __init__(self, comm: Communicator, tokens: int, size: int) -> None:
        self._comm = comm
        self._share = -(-tokens // comm.size)
        every = [
            slice(min(rank * self._share, tokens), min((rank + 1) * self._share, tokens))
            for rank in range(comm.size)
        ]
        self.own = every[comm.rank]
        self.others = [(rank, rows) for rank, rows in enumerate(every) if rank != comm.rank]
        self._places = dict(self.others)
        self.normalized = torch.full((tokens, size), math.nan)
        self._coming = self.normalized.clone()
        self._summands = self.normalized.clone()
        self._sent = self.normalized.clone()

    def summand(self, rank: int) -> Tensor:
        return self._summands[self._places[rank]]

    def send(self, rank: int) -> None:
        rows = self._places[rank]
        self._sent[rows] = self._summands[rows]
        self._summands[rows] = math.nan

    def add_rms_norm(self, own: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
        self._sent[self.own] = own
        residual += self._comm.all_reduce(self._sent)[self.own]
        self._sent = torch.full_like(self._sent, math.nan)
        self.normalized.fill_(math.nan)
        made = F.rms_norm(residual, weight.shape, weight, eps)
        self.normalized[self.own] = made
        padded = F.pad(made, (0, 0, 0, self._share - len(made)))
        self._coming = self._comm.all_gather(padded)[: len(self.normalized)]

    def arrivals(self) -> Iterator[slice]:
        yield self.own
        for _, rows in self.others:
            self.normalized[rows] = self._coming[rows]
            yield rows
