"""The gated feed-forward layer (Shazeer 2020, SwiGLU)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisgl.distributed import Communicator, Division
from minisgl.kernel import kernels_for
from minisgl.layers.linear import ColumnLinear, RowLinear
from minisgl.layers.weights import Piece, split


class GatedMLP(nn.Module):
    """x [T, hidden] -> this rank's summand of ``down(silu(gate(x)) * up(x))`` [T, hidden].

    Or its parts, as `RowLinear.in_parts` gives them.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, comm: Communicator, *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        span = split(intermediate_size, comm)
        self.gate_up = ColumnLinear(hidden_size, (span, span), bias=False, dtype=dtype)
        self.down = RowLinear(span, hidden_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight, scale = self.gate_up.weight, self.gate_up.scale
        kernels = kernels_for(x, "gemv") if len(x) == 1 else None
        if kernels is not None:
            return self.down(kernels.gemv(x, weight, scale=scale, gated=True))  # type: ignore[no-any-return]
        kernels = kernels_for(x, "stream") if scale is None else None
        if kernels is not None and 0 < len(x) <= kernels.MOST_TOKENS and kernels.suits(weight):
            return self.down.in_parts(kernels.gate_up(x, weight))
        return self.down.in_parts(silu_and_mul(self.gate_up(x)))

    def divided(self, division: Division) -> Tensor:
        """The same for rows that ranks divide: summands of this rank's own."""
        return self.down.scattered(silu_and_mul(self.gate_up.gathered(division)), division)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield from self.gate_up.pieces(f"{name}.gate_proj", f"{name}.up_proj")
        yield from self.down.pieces(f"{name}.down_proj")


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 n] -> ``silu(first half) * second half`` [T, n]."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        return kernels.silu_and_mul(gate_up)  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
