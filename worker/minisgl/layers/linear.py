"""Linear layers, split by output features or by input features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from minisgl.distributed import Communicator
from minisgl.layers.matmul import matmul, pack
from minisgl.layers.weights import Piece, Span, parameter


class ColumnLinear(nn.Module):
    """Several projections of one input, fused: this rank's part of each one's output features, side by side.

    x [T, in] -> [T, sum of the spans' sizes].
    """

    def __init__(self, in_features: int, spans: Sequence[Span], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.spans = tuple(spans)
        self.sizes = [span.size for span in spans]
        self.weight = parameter(sum(self.sizes), in_features, dtype=dtype)
        self.bias = parameter(sum(self.sizes), dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return matmul(x, self.weight, self.bias)

    def pieces(self, *names: str) -> Iterator[Piece]:
        """`names`: of the projections in the checkpoint."""
        for suffix, fused in (("weight", self.weight), ("bias", self.bias)):
            if fused is not None:
                for name, span, target in zip(names, self.spans, torch.split(fused, self.sizes), strict=True):
                    shape = (span.total, *fused.shape[1:])
                    yield Piece(f"{name}.{suffix}", shape, (span.slice,), target)

    def pack(self) -> None:
        self.weight = nn.Parameter(pack(self.weight), requires_grad=False)


class RowLinear(nn.Module):
    """A projection whose input features are split: each rank's partial sums are added up.

    x [T, span's size] -> [T, out], the same on every rank.
    """

    def __init__(self, span: Span, out_features: int, comm: Communicator, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.span = span
        self.comm = comm
        self.weight = parameter(out_features, span.size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.comm.all_reduce(matmul(x, self.weight))

    def pieces(self, name: str) -> Iterator[Piece]:
        shape = (self.weight.shape[0], self.span.total)
        yield Piece(f"{name}.weight", shape, (slice(None), self.span.slice), self.weight)

    def pack(self) -> None:
        self.weight = nn.Parameter(pack(self.weight), requires_grad=False)
