"""How a rank's parameters are filled from a checkpoint's tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minisgl.distributed import Communicator


class Span(NamedTuple):
    """This rank's part ``[start, stop)`` of a dimension that is `total` long."""

    total: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


class Piece(NamedTuple):
    """``target = checkpoint[name][source]``."""

    name: str
    shape: tuple[int, ...]
    """The whole tensor's."""
    source: tuple[slice, ...]
    """This rank's part of it; a dimension left out is taken whole."""
    target: Tensor
    """A contiguous view into a parameter; the views of one parameter tile it."""
    scale: Tensor | None = None
    """float32 [rows] of a matrix in FP8: ``target * scale`` is what the checkpoint holds, rounded."""


def split(total: int, comm: Communicator) -> Span:
    """A dimension in equal parts, of which the last may be shorter."""
    part = -(-total // comm.size)
    return Span(total, min(comm.rank * part, total), min((comm.rank + 1) * part, total))


def split_heads(heads: int, head_dim: int, comm: Communicator) -> Span:
    """Whole heads of `head_dim` features; with more ranks than heads, each head is on several ranks."""
    first = comm.rank * heads // comm.size
    count = max(heads // comm.size, 1)
    return Span(heads * head_dim, first * head_dim, (first + count) * head_dim)


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
