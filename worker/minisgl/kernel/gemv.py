"""One token through a linear layer: the weights are read once, and nothing else takes time.

cuBLAS is made for many rows, and with one comes to a third of the memory's bandwidth. The reference is
`torch.nn.functional.linear`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

ROWS = 2
"""Output features of one program."""
COLUMNS = 1024
"""Input features that a program reads at once."""
MOST_ROWS = 65_536
"""Output features beyond which cuBLAS is as fast: a vocabulary's."""


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [1, in], weight [out, in] contiguous, bias [out] or None -> [1, out]."""
    out_features, in_features = weight.shape
    out = x.new_empty((1, out_features))
    block = min(COLUMNS, triton.next_power_of_2(in_features))
    _gemv[(triton.cdiv(out_features, ROWS),)](
        x, weight, weight if bias is None else bias, out, out_features, in_features, bias is not None, ROWS, block,
        early(), num_warps=4 if out_features <= 1024 else 2, launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _gemv(
    x, weight, bias, out, out_features, in_features: tl.constexpr, has_bias: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, early: tl.constexpr,
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
    result = tl.sum(total, axis=1)
    if has_bias:
        result += tl.load(bias + row, there, 0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), there)
