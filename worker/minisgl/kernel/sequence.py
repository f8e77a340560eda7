"""What ranks do for `minisgl.distributed.sequence` besides copying: wait for what is sent, and add it up.

Kernels here begin when all before them have ended, since what they read is written by no kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.peers import add_and_normalize


def await_flag(flag: Tensor, count: int) -> None:
    """Let what is launched next wait until another GPU has set `flag`, int32 [], to `count`.

    `count` from -2^31 to 2^31 - 1: counts may overflow.
    """
    _await_flag[(1,)](flag, count, num_warps=1)


@triton.jit(do_not_specialize=["count"])
def _await_flag(flag, count):
    while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - count < 0:
        pass


def add_rms_norm_of_share(
    own: Tensor, summands: Tensor, rank: int, residual: Tensor, weight: Tensor, eps: float, out: Tensor
) -> None:
    """Add `own` [T, size] and the other ranks' `summands` [ranks - 1, T or more, size] to `residual`, in place.

    `out` [T, size]: the sum normalized and times `weight`. All contiguous. The reference is
    `minisgl.kernel.layers.add_rms_norm`, of the sum.
    """
    tokens, size = own.shape
    block = triton.next_power_of_2(size)
    _add_rms_norm_of_share[(tokens,)](
        own, summands, residual, weight, out, size, summands.stride(0), eps, len(summands) + 1, rank, block,
        num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip


@triton.jit
def _add_rms_norm_of_share(
    own, summands, residual, weight, out, size, stride, eps, ranks: tl.constexpr, rank: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = row * size
    columns = tl.arange(0, block)
    mask = columns < size
    total = tl.zeros((block,), tl.float32)
    slot = 0
    for peer in tl.static_range(ranks):
        if peer == rank:
            total += tl.load(own + start + columns, mask, 0.0).to(tl.float32)
        else:
            place = summands + tl.cast(slot, tl.int64) * stride + start + columns
            total += tl.load(place, mask, 0.0).to(tl.float32)
            slot += 1
    add_and_normalize(total, residual, weight, out, row, columns, mask, size, eps)
