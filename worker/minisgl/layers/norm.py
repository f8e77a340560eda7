"""Root mean square normalization (Zhang and Sennrich 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisgl.distributed import Communicator, Division
from minisgl.kernel import kernels_for
from minisgl.layers.weights import Piece, parameter


class RMSNorm(nn.Module):
    """x [..., size] -> ``x / sqrt(mean(x^2) + eps) * weight``, of the same shape and type."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x)
        if kernels is not None and x.dim() == 2 and x.is_contiguous():
            return kernels.rms_norm(x, self.weight, self.eps)  # type: ignore[no-any-return]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor, comm: Communicator) -> Tensor:
        """Add `x`, a summand of this rank, to `residual` in place, and return the sum normalized.

        `residual` is the same on every rank, before and after. x may be the parts that `RowLinear.in_parts` gives.
        """
        summed = comm.add_rms_norm(x, residual, self.weight, self.eps)
        if summed is not None:
            return summed
        x = comm.all_reduce(x)
        kernels = kernels_for(x)
        if kernels is not None:
            return kernels.add_rms_norm(x, residual, self.weight, self.eps)  # type: ignore[no-any-return]
        residual += x
        return self(residual)  # type: ignore[no-any-return]

    def add_divided(self, x: Tensor, residual: Tensor, division: Division) -> None:
        """The same of the rows that are this rank's: x and `residual`. The result is `division.normalized`."""
        division.add_rms_norm(x, residual, self.weight, self.eps)

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(f"{name}.weight", tuple(self.weight.shape), (), self.weight)
