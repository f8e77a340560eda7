"""Gate and up projections of a large gated MLP for few tokens, with SiLU·mul.

They take as long as reading their weights, if all multiprocessors read equal parts from start to end. So one
program runs on each, with a ring of blocks that the copy engine fills (TMA) while the tensor cores (wgmma) work on
the oldest one. Its part is two blocks of features, `wide` and `narrow`: a single power of two would leave programs
without work, or give some twice as much. The first blocks are asked for while the kernel before still runs.
The reference is `minisgl.layers.mlp`.
"""

from __future__ import annotations

from functools import cache

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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from minisgl.kernel.launch import early, let_next_start, wait_for_earlier

MOST_TOKENS = 64
"""Beyond which cuBLAS is about as fast: each program reads all of x, too. wgmma takes 64 in any case."""
BLOCK = 64
"""Input features read at once: 128 bytes, a row of shared memory as the tensor cores want it."""
SHARED_MEMORY = 175_000
"""Bytes of a program's ring, at most."""

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""Triton 3.7 has given it another name."""


def suits(weight: Tensor) -> bool:
    """Whether `gate_up` takes less time for this weight [2 n, in], of a CUDA device, than cuBLAS."""
    features, size = weight.shape[0] // 2, weight.shape[1]
    most = processors(weight.device)
    wide, narrow = _widths(features, most)
    even = 0.95 * most <= features / (wide + narrow) <= most
    return is_hopper(weight.device) and weight.itemsize == 2 and size % BLOCK == 0 and wide == 128 and even


def gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in], weight [2 n, in], contiguous -> ``silu(first half) * second half`` of x W^T [T, n].

    Both of the same 16-bit type; T from 1 to `MOST_TOKENS`, in a multiple of `BLOCK`.
    """
    (tokens, size), features = x.shape, weight.shape[0] // 2
    wide, narrow = _widths(features, processors(weight.device))
    out = x.new_empty((tokens, features))
    stages = SHARED_MEMORY // ((MOST_TOKENS + 2 * (wide + narrow)) * BLOCK * x.itemsize)
    _gate_up[(-(-features // (wide + narrow)),)](
        blocks_of(x, MOST_TOKENS), blocks_of(weight, wide), blocks_of(weight, narrow), out, tokens, features,
        size // BLOCK, stages, early(), num_warps=4, launch_pdl=early(),
    )  # fmt: skip
    return out


def _widths(features: int, programs: int) -> tuple[int, int]:
    """Powers of two, 8 at least, whose sum times `programs` is `features` or a little more."""
    width = -(-features // programs)
    wide = 1 << max(width.bit_length() - 1, 3)
    return wide, max(8, 1 << (width - wide - 1).bit_length()) if width > wide else 8


@cache
def processors(device: torch.device) -> int:
    """A GPU's multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether there are TMA and wgmma."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@cache
def _layout(rows: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([rows, BLOCK], gl.bfloat16)


def blocks_of(matrix: Tensor, rows: int) -> TensorDescriptor:
    """What TMA copies: [rows, BLOCK] of a contiguous matrix."""
    return TensorDescriptor.from_tensor(matrix, [rows, BLOCK], _layout(rows))


@gluon.jit(do_not_specialize=["tokens"])
def _gate_up(
    x, weight, weight_narrow, out, tokens, features: gl.constexpr, blocks: gl.constexpr, stages: gl.constexpr,
    early: gl.constexpr,
):  # fmt: skip
    let_next_start(early)
    rows: gl.constexpr = x.block_shape[0]
    wide: gl.constexpr = weight.block_shape[0]
    narrow: gl.constexpr = weight_narrow.block_shape[0]
    block: gl.constexpr = x.block_shape[1]
    feature = gl.program_id(0) * (wide + narrow)
    # [gate, up] of each stage side by side
    ring_x = gl.allocate_shared_memory(x.dtype, [stages, rows, block], x.layout)
    ring_wide = gl.allocate_shared_memory(x.dtype, [2 * stages, wide, block], weight.layout)
    ring_narrow = gl.allocate_shared_memory(x.dtype, [2 * stages, narrow, block], weight_narrow.layout)
    ready = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for turn in gl.static_range(stages):
        mbarrier.init(ready.index(turn), count=1)
    barrier()
    for turn in gl.static_range(min(stages, blocks)):  # no kernel writes weights
        mbarrier.expect(ready.index(turn), (rows + 2 * (wide + narrow)) * block * 2)
        _read(weight, feature, features, turn, ready, ring_wide, turn)
        _read(weight_narrow, feature + wide, features, turn, ready, ring_narrow, turn)
    wait_for_earlier(early)
    for turn in gl.static_range(min(stages, blocks)):
        tma.async_copy_global_to_shared(x, [0, turn * block], ready.index(turn), ring_x.index(turn))

    warps: gl.constexpr = gl.num_warps()
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, wide, 16])
    narrow_sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, narrow, 16])
    gate = gl.zeros([rows, wide], gl.float32, layout=sums)
    up = gl.zeros([rows, wide], gl.float32, layout=sums)
    gate_narrow = gl.zeros([rows, narrow], gl.float32, layout=narrow_sums)
    up_narrow = gl.zeros([rows, narrow], gl.float32, layout=narrow_sums)
    for now in range(blocks):
        stage = now % stages
        mbarrier.wait(ready.index(stage), now // stages & 1)
        values = ring_x.index(stage)
        gate = _multiply(values, ring_wide, 2 * stage, gate)
        up = _multiply(values, ring_wide, 2 * stage + 1, up)
        gate_narrow = _multiply(values, ring_narrow, 2 * stage, gate_narrow)
        up_narrow = _multiply(values, ring_narrow, 2 * stage + 1, up_narrow)
        # All but the newest four: the block before is free.
        gate, up, gate_narrow, up_narrow = warpgroup_mma_wait(4, deps=(gate, up, gate_narrow, up_narrow))
        barrier()
        ahead = now + stages - 1
        if ahead < blocks and ahead >= stages:
            free = ahead % stages
            mbarrier.expect(ready.index(free), (rows + 2 * (wide + narrow)) * block * 2)
            _read(weight, feature, features, ahead, ready, ring_wide, free)
            _read(weight_narrow, feature + wide, features, ahead, ready, ring_narrow, free)
            tma.async_copy_global_to_shared(x, [0, ahead * block], ready.index(free), ring_x.index(free))
    gate, up, gate_narrow, up_narrow = warpgroup_mma_wait(0, deps=(gate, up, gate_narrow, up_narrow))
    _write(gate, up, out, feature, tokens, features, sums)
    _write(gate_narrow, up_narrow, out, feature + wide, tokens, features, narrow_sums)


@gluon.jit
def _read(weight, feature, features, block, ready, ring, stage):
    """Begin to copy a block of the gate's weights, and of the up projection's, to a stage."""
    at = block * ring.shape[2]
    arrived = ready.index(stage)
    tma.async_copy_global_to_shared(weight, [feature, at], arrived, ring.index(2 * stage))
    tma.async_copy_global_to_shared(weight, [features + feature, at], arrived, ring.index(2 * stage + 1))


@gluon.jit
def _multiply(values, ring, place, sums):
    """Begin to add ``values @ block^T`` to `sums`."""
    return warpgroup_mma(values, ring.index(place).permute((1, 0)), sums, is_async=True)


@gluon.jit
def _write(gate, up, out, feature, tokens, features: gl.constexpr, sums: gl.constexpr):
    rows: gl.constexpr = gate.shape[0]
    columns: gl.constexpr = gate.shape[1]
    kind: gl.constexpr = out.dtype.element_ty
    gate = gate.to(kind).to(gl.float32)
    gate = (gate / (1.0 + gl.exp(-gate))).to(kind).to(gl.float32)
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, sums))
    feature += gl.arange(0, columns, layout=gl.SliceLayout(0, sums))
    place = out + token.to(gl.int64)[:, None] * features + feature[None, :]
    result = gate * up.to(kind).to(gl.float32)
    gl.store(place, result.to(kind), (token < tokens)[:, None] & (feature < features)[None, :])
