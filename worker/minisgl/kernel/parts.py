"""A large linear layer with many input features for few tokens, as parts whose sum is its result.

It takes as long as reading its weights, if all multiprocessors read equal parts from start to end: tiles of 128
output features are too few for that, so their input features are split. The parts are summed up by the kernel that
adds them to the residual stream, `minisgl.kernel.layers.add_rms_norm`. Reading is as in `minisgl.kernel.stream`.
The reference is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from minisgl.kernel.launch import early, let_next_start, wait_for_earlier
from minisgl.kernel.stream import BLOCK, MOST_TOKENS, SHARED_MEMORY, barrier, blocks_of, is_hopper, processors

WIDTH = 128
"""Output features of a program."""
LEAST_SIZE = 4096
"""Input features of a part: with fewer, cuBLAS is as fast."""
LEAST_BLOCKS = 8
"""Of a part."""


def suits(weight: Tensor) -> bool:
    """Whether `linear` takes less time for this weight [out, in], of a CUDA device, than cuBLAS."""
    features, size = weight.shape
    splits, most = _splits(weight), processors(weight.device)
    even = features % WIDTH == 0 and size % BLOCK == 0 and splits * features // WIDTH >= 0.8 * most
    return is_hopper(weight.device) and weight.itemsize == 2 and even and size >= max(splits, 2) * LEAST_SIZE


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in], weight [out, in], contiguous -> float32 [parts, T, out], whose sum is x W^T.

    Both of the same 16-bit type; T from 1 to `MOST_TOKENS`, in a multiple of `BLOCK`, out of `WIDTH`.
    """
    (tokens, size), features, splits = x.shape, weight.shape[0], _splits(weight)
    out = torch.empty((splits, tokens, features), dtype=torch.float32, device=x.device)
    blocks = size // BLOCK
    stages = min(SHARED_MEMORY // ((MOST_TOKENS + WIDTH) * BLOCK * x.itemsize), blocks // splits)
    _parts[(features // WIDTH, splits)](
        blocks_of(x, MOST_TOKENS), blocks_of(weight, WIDTH), out, tokens, features, blocks, splits, stages,
        early(), num_warps=4, launch_pdl=early(),
    )  # fmt: skip
    return out


def _splits(weight: Tensor) -> int:
    """Parts of the input features, so that there is one program for each multiprocessor, or a few less."""
    most = processors(weight.device) * WIDTH // max(weight.shape[0], WIDTH)
    return max(min(most, weight.shape[1] // BLOCK // LEAST_BLOCKS), 1)


@gluon.jit(do_not_specialize=["tokens"])
def _parts(
    x, weight, out, tokens, features: gl.constexpr, blocks: gl.constexpr, splits: gl.constexpr,
    stages: gl.constexpr, early: gl.constexpr,
):  # fmt: skip
    let_next_start(early)
    rows: gl.constexpr = x.block_shape[0]
    width: gl.constexpr = weight.block_shape[0]
    block: gl.constexpr = x.block_shape[1]
    feature = gl.program_id(0) * width
    part = gl.program_id(1)
    first = part * blocks // splits
    count = (part + 1) * blocks // splits - first
    ring_x = gl.allocate_shared_memory(x.dtype, [stages, rows, block], x.layout)
    ring = gl.allocate_shared_memory(x.dtype, [stages, width, block], weight.layout)
    ready = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for turn in gl.static_range(stages):
        mbarrier.init(ready.index(turn), count=1)
    barrier()
    for turn in gl.static_range(stages):  # no kernel writes weights
        arrived = ready.index(turn)
        mbarrier.expect(arrived, (rows + width) * block * 2)
        tma.async_copy_global_to_shared(weight, [feature, (first + turn) * block], arrived, ring.index(turn))
    wait_for_earlier(early)
    for turn in gl.static_range(stages):
        tma.async_copy_global_to_shared(x, [0, (first + turn) * block], ready.index(turn), ring_x.index(turn))
    warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, width, 16])
    sums = gl.zeros([rows, width], gl.float32, layout=layout)
    for now in range(count):
        stage = now % stages
        mbarrier.wait(ready.index(stage), now // stages & 1)
        sums = warpgroup_mma(ring_x.index(stage), ring.index(stage).permute((1, 0)), sums, is_async=True)
        sums = warpgroup_mma_wait(1, deps=(sums,))  # all but the newest: the block before is free
        barrier()
        ahead = now + stages - 1
        if ahead < count and ahead >= stages:
            at, free = (first + ahead) * block, ahead % stages
            arrived = ready.index(free)
            mbarrier.expect(arrived, (rows + width) * block * 2)
            tma.async_copy_global_to_shared(weight, [feature, at], arrived, ring.index(free))
            tma.async_copy_global_to_shared(x, [0, at], arrived, ring_x.index(free))
    sums = warpgroup_mma_wait(0, deps=(sums,))
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, layout))
    column = feature + gl.arange(0, width, layout=gl.SliceLayout(0, layout))
    place = out + (part * tokens + token).to(gl.int64)[:, None] * features + column[None, :]
    gl.store(place, sums, (token < tokens)[:, None] & (column < features)[None, :])
