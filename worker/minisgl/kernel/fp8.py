"""FP8 linear layers: rounding the input of many tokens, and the whole layer for one. E4M3, as `layers.quantized`.

The products of many tokens are cuBLAS's, by `torch._scaled_mm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

ROWS = 2
"""Output features of one program of `gemv`."""
COLUMNS = 1024
"""Input features that it reads at once."""
WARPS = 2


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, n] contiguous -> FP8 [T, n] and float32 [T, 1], whose product is x: `layers.quantized.round_rows`."""
    rows, size = x.shape
    rounded = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    if rows:
        _round_rows[(rows,)](
            x, rounded, scale, size, block, early(),
            num_warps=min(max(block // 1024, 1), 16), launch_pdl=early(),
        )  # fmt: skip
    return rounded, scale


@triton.jit
def _round_rows(x, rounded, scale, size: tl.constexpr, block: tl.constexpr, early: tl.constexpr):
    begin(early)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < size
    values = tl.load(x + row * size + columns, inside, 0.0).to(tl.float32)
    row_scale = tl.maximum(tl.max(tl.abs(values)), 1e-12) / 448.0  # FP8's largest number
    tl.store(scale + row, row_scale)
    values = tl.clamp(values / row_scale, -448.0, 448.0)
    tl.store(rounded + row * size + columns, values.to(rounded.dtype.element_ty), inside)


def gemv(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [1, in], weight FP8 [out, in] contiguous, scale float32 [out], bias [out] or None -> [1, out].

    The input is not rounded: reading the weights is all that takes time, so the sums may as well be exact.
    """
    out_features, in_features = weight.shape
    out = x.new_empty((1, out_features))
    block = min(COLUMNS, triton.next_power_of_2(in_features))
    _gemv[(triton.cdiv(out_features, ROWS),)](
        x, weight, scale, scale if bias is None else bias, out, out_features, in_features, bias is not None,
        ROWS, block, early(), num_warps=WARPS, launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _gemv(
    x, weight, scale, bias, out, out_features, in_features: tl.constexpr, has_bias: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    there = row < out_features
    start = weight + row.to(tl.int64)[:, None] * in_features
    column = tl.arange(0, block)
    inside = column < in_features
    weights = tl.load(start + column[None, :], there[:, None] & inside[None, :], 0.0)  # no kernel writes them
    begin(early)
    total = weights.to(tl.float32) * tl.load(x + column, inside, 0.0).to(tl.float32)[None, :]
    for first in tl.range(block, in_features, block, loop_unroll_factor=4):
        column = first + tl.arange(0, block)
        inside = column < in_features
        weights = tl.load(start + column[None, :], there[:, None] & inside[None, :], 0.0)
        total += weights.to(tl.float32) * tl.load(x + column, inside, 0.0).to(tl.float32)[None, :]
    result = tl.sum(total, axis=1) * tl.load(scale + row, there, 0.0)
    if has_bias:
        result += tl.load(bias + row, there, 0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), there)
