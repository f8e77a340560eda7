"""Rounding the input of a linear layer to FP8 (E4M3). The reference is `minisgl.layers.quantized`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early


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
