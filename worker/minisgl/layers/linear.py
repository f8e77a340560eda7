"""Linear layers, split by output features or by input features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minisgl.distributed import Division
from minisgl.kernel import kernels_for
from minisgl.layers.matmul import matmul, pack
from minisgl.layers.norm import RMSNorm
from minisgl.layers.products import Products
from minisgl.layers.quantized import FP8, MULTIPLE
from minisgl.layers.weights import Piece, Span, parameter
from minisgl.utils.errors import UserError

if TYPE_CHECKING:
    from minisgl.kernel.linear import Weighted


class Linear(nn.Module):
    """One rank's weight [out, in], and what it takes to hold it in FP8."""

    weight: nn.Parameter
    scale: Tensor | None
    """float32 [out], of a weight in FP8."""

    bias: nn.Parameter | None
    counters: Tensor
    """As `minisgl.kernel.linear` needs them."""

    products: Products | None
    """How to multiply by it, when the choice is not only torch's."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.products = None
        self.weight, self.bias = weight, bias
        self.register_buffer("scale", None)

    def multiply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x [T, in] -> [T, out]. `out`: where the result goes."""
        if self.products is not None and out is None and len(x) > 1:
            return self.products.linear(x, self.weight)
        return matmul(x, self.weight, self.bias, self.scale, out)

    def few_tokens(self, x: Tensor | Weighted, norm: RMSNorm, *, gated: bool = False) -> Tensor:
        """``self(norm(x))`` of few tokens on one CUDA device, where x may have been begun to be normalized.

        `gated`: as for `minisgl.kernel.gemv`, which runs for one token, and `minisgl.kernel.linear`, for more.
        """
        if isinstance(x, Tensor) and len(x) == 1:
            return kernels_for(x, "gemv").gemv(  # type: ignore[no-any-return]
                x, self.weight, self.bias, scale=self.scale, norm=(norm.weight, norm.eps), gated=gated
            )
        begun = norm(x) if isinstance(x, Tensor) else x
        kernels = kernels_for(self.weight, "linear")
        return kernels.linear(  # type: ignore[no-any-return]
            begun, self.weight, self.bias, self.counters, gated=gated
        )

    def few_to_stream(self, x: Tensor, stream: Tensor, norm: RMSNorm | None) -> Tensor | Weighted:
        """Add ``self(x)`` of few tokens on one CUDA device to `stream`; what `norm` comes to next is begun."""
        if len(x) == 1:
            return kernels_for(x, "gemv").gemv(  # type: ignore[no-any-return]
                x, self.weight, self.bias, scale=self.scale, residual=stream
            )
        kernels = kernels_for(x, "linear")
        following = None if norm is None else (norm.weight, norm.eps)
        return kernels.linear_to_stream(  # type: ignore[no-any-return]
            x, self.weight, self.counters, stream, following
        )

    def to_fp8(self) -> None:
        """Hold the weight in FP8, which is not read yet. Raises `UserError` when no kernel takes its shape."""
        if self.weight.shape[0] % MULTIPLE or self.weight.shape[1] % MULTIPLE:
            raise UserError(
                f"--quantization fp8: a linear layer of this model has {self.weight.shape[1]} features in and "
                f"{self.weight.shape[0]} out on each rank; allowed: multiples of {MULTIPLE}"
            )
        self.weight = parameter(*self.weight.shape, dtype=FP8)
        self.scale = torch.empty(len(self.weight), dtype=torch.float32)

    def most_tokens(self) -> int:
        """That `few_tokens` takes, and is faster for than the layer by itself."""
        small = self.scale is None and self.weight.itemsize == 2
        return kernels_for(self.weight, "linear").most_tokens(*self.weight.shape) if small else 1

    def pack(self) -> None:
        if self.weight.is_cuda:
            count = kernels_for(self.weight, "linear").TILES
            self.counters = torch.zeros(count, dtype=torch.int32, device=self.weight.device)
        self.weight = nn.Parameter(pack(self.weight), requires_grad=False)


class ColumnLinear(Linear):
    """Several projections of one input, fused: this rank's part of each one's output features, side by side.

    x [T, in] -> [T, sum of the spans' sizes].
    """

    def __init__(self, in_features: int, spans: Sequence[Span], *, bias: bool, dtype: torch.dtype) -> None:
        sizes = [span.size for span in spans]
        features = sum(sizes)
        super().__init__(
            parameter(features, in_features, dtype=dtype), parameter(features, dtype=dtype) if bias else None
        )
        self.spans, self.sizes = tuple(spans), sizes

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """`out`: where the result goes."""
        return self.multiply(x, out)

    def gathered(self, division: Division) -> Tensor:
        """Of what `division` has normalized: [T, out]."""
        x = division.normalized
        result = x.new_empty((len(x), sum(self.sizes)))
        for rows in division.arrivals():
            self(x[rows], result[rows])
        return result

    def pieces(self, *names: str) -> Iterator[Piece]:
        """`names`: of the projections in the checkpoint."""
        for suffix, fused, scale in (("weight", self.weight, self.scale), ("bias", self.bias, None)):
            if fused is not None:
                scales = [None] * len(names) if scale is None else torch.split(scale, self.sizes)
                targets = torch.split(fused, self.sizes)
                for name, span, target, part in zip(names, self.spans, targets, scales, strict=True):
                    shape = (span.total, *fused.shape[1:])
                    yield Piece(f"{name}.{suffix}", shape, (span.slice,), target, part)


class RowLinear(Linear):
    """A projection whose input features are split: x [T, span's size] -> this rank's summand of [T, out]."""

    def __init__(self, span: Span, out_features: int, *, dtype: torch.dtype) -> None:
        super().__init__(parameter(out_features, span.size, dtype=dtype))
        self.span = span

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """`out`: where the result goes."""
        return self.multiply(x, out)

    def scattered(self, x: Tensor, division: Division) -> Tensor:
        """This rank's summands, of the other ranks' rows sent to them -> those of its own rows."""
        for rank, rows in division.others:
            self(x[rows], division.summand(rank))
            division.send(rank)
        return self(x[division.own])  # type: ignore[no-any-return]

    def in_parts(self, x: Tensor) -> Tensor:
        """The same, or float32 [parts, T, out] whose sum it is: `RMSNorm.add` takes both."""
        whole = self.scale is None and self.span.size == self.span.total
        kernels = kernels_for(x, "parts") if whole else None
        if kernels is None or not 1 < len(x) <= kernels.MOST_TOKENS or not kernels.suits(self.weight):
            return self(x)  # type: ignore[no-any-return]
        return kernels.linear(x, self.weight)  # type: ignore[no-any-return]

    def pieces(self, name: str) -> Iterator[Piece]:
        shape = (self.weight.shape[0], self.span.total)
        yield Piece(f"{name}.weight", shape, (slice(None), self.span.slice), self.weight, self.scale)
