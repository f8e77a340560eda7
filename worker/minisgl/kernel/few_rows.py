"""Attention of one token in each of a few rows: what `minisgl.kernel.decode` does, in the least time to begin.

With few rows the time goes to launching, not to reading. There is nothing to plan, and a program has its first
keys and values before the kernel that makes its query has ended. Each program attends to a part of a row's tokens
for one key-value head; the last of a head's programs to finish merges their results (flash decoding, Dao et al.
2023), in the order of the parts, so that the result does not depend on which one was last. The references are
`minisgl.layers.attention` and `minisgl.attention.torch_backend`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.decode import turned
from minisgl.kernel.launch import early, let_next_start, wait_for_earlier
from minisgl.kernel.layers import as_stored

MOST_ROWS = 4
"""Rows beyond which `minisgl.kernel.decode` is faster."""
BLOCK = 32
"""Tokens that a program reads at once."""
ENOUGH = 8
"""Blocks of a program, beyond which more than half of them work: merging more parts takes longer at first."""
NO_WINDOW = 1 << 30


def decode(
    heads: Tensor, kv_heads: int, norms: tuple[Tensor, Tensor, float] | None, rotation: Tensor, cache: Tensor,
    page_size: int, tables: Tensor, lengths: Tensor, window: int | None, counters: Tensor,
) -> Tensor:  # fmt: skip
    """heads [D, heads + 2 kv_heads, head_dim], contiguous: queries, keys, values -> [D, heads, head_dim].

    norms, rotation, cache as for `minisgl.kernel.layers.rotate_and_store`, which it does first; head_dim a power
    of two; tables int32 [D, pages] and lengths int32 [D]: each row's pages, and its tokens with the new one. They
    and the cache of earlier tokens must not be written by a kernel that lets this one start early. counters int32,
    at least D * kv_heads: zero, and zero again afterwards.
    """
    rows, every, head_dim = heads.shape
    query_heads = every - 2 * kv_heads
    group = triton.next_power_of_2(query_heads // kv_heads)
    parts = 64 if rows <= 2 else 32
    out = heads.new_empty((rows, query_heads, head_dim))
    mixed = torch.empty((rows * kv_heads * parts, group, head_dim), dtype=torch.float32, device=heads.device)
    sums = torch.empty((rows * kv_heads * parts, 2, group), dtype=torch.float32, device=heads.device)
    query_weight, key_weight, eps = norms or (rotation, rotation, 0.0)
    _decode_few_rows[(rows, kv_heads, parts)](
        heads, query_weight, key_weight, rotation, cache, tables, lengths, out, mixed, sums, counters,
        eps, head_dim**-0.5 * 1.4426950408889634, cache.stride(0), tables.shape[1], window or NO_WINDOW,
        query_heads, kv_heads, head_dim, group, norms is not None, page_size, BLOCK, ENOUGH, parts, early(),
        num_warps=2 if group <= 8 else 4, launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _decode_few_rows(
    heads, query_weight, key_weight, rotation, cache, tables, lengths, out, part_mixed, part_sums, counters,
    eps, scale, slot_stride, width, window,
    query_heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, group: tl.constexpr,
    normalize: tl.constexpr, page_size: tl.constexpr, block: tl.constexpr, enough: tl.constexpr,
    parts: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """`scale` includes log2(e): shares are powers of two. `group`: query heads of a key-value head, padded."""
    let_next_start(early)
    row, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    last = tl.load(lengths + row) - 1  # the new token's position
    first = tl.maximum(last + 1 - window, 0)
    blocks = tl.cdiv(last - first, block)
    blocks_each = tl.maximum(tl.cdiv(blocks, parts), tl.minimum(tl.cdiv(blocks, parts // 2), enough))
    blocks_each = tl.maximum(blocks_each, 1)
    active = tl.maximum(tl.cdiv(blocks, blocks_each), 1)
    if part >= active:
        wait_for_earlier(early)
        return
    column = tl.arange(0, head_dim)
    pages = tables + row * width
    cached = cache + kv_head * head_dim + column[None, :]
    start = first + part * blocks_each * block
    end = tl.minimum(start + blocks_each * block, last)
    keys, values, seen = _read_block(pages, cached, start, end, slot_stride, kv_heads * head_dim, page_size, block)
    wait_for_earlier(early)
    kind: tl.constexpr = heads.dtype.element_ty
    other = (column + head_dim // 2) % head_dim  # the dimension that each one is paired with
    turn = rotation + row * 2 * head_dim + column
    cos, sin = tl.load(turn)[None, :], tl.load(turn + head_dim)[None, :]
    new = heads + row * (query_heads + 2 * kv_heads) * head_dim
    member = tl.arange(0, group)
    mine = (member < query_heads // kv_heads)[:, None]
    query_head = (kv_head * (query_heads // kv_heads) + member)[:, None]
    query = turned(new, query_head, mine, query_weight, column, other, cos, sin, eps, head_dim, normalize)
    largest = tl.full((group,), -1.0e30, tl.float32)
    total = tl.zeros((group,), tl.float32)
    mixed = tl.zeros((group, head_dim), tl.float32)
    if part == 0:
        key_head = query_heads + kv_head + tl.arange(0, 1)[:, None]
        key = turned(new, key_head, key_head >= 0, key_weight, column, other, cos, sin, eps, head_dim, normalize)
        value = tl.load(new + (query_heads + kv_heads + kv_head) * head_dim + column[None, :])
        page = tl.load(pages + last // page_size).to(tl.int64)
        place = cached + (page * page_size + last % page_size) * slot_stride
        stored_key, stored_value = as_stored(key, cache), as_stored(value, cache)
        tl.store(place, stored_key)
        tl.store(place + kv_heads * head_dim, stored_value)
        key, value = stored_key.to(kind), stored_value.to(kind)
        largest = tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=1) * scale
        total += 1.0
        mixed += value.to(tl.float32)
    largest, total, mixed = _attend_to_block(
        query, keys.to(kind), values.to(kind), seen, scale, largest, total, mixed
    )
    for at in tl.range(start + block, end, block, num_stages=2):
        keys, values, seen = _read_block(
            pages, cached, at, end, slot_stride, kv_heads * head_dim, page_size, block
        )
        largest, total, mixed = _attend_to_block(
            query, keys.to(kind), values.to(kind), seen, scale, largest, total, mixed
        )
    place = out + (row * query_heads + query_head) * head_dim + column[None, :]
    if active == 1:
        tl.store(place, (mixed / total[:, None]).to(kind), mine)
        return
    counter = counters + row * kv_heads + kv_head
    base = (row * kv_heads + kv_head) * parts
    line = (base + part) * group + member
    tl.store(part_mixed + line[:, None] * head_dim + column[None, :], mixed)
    tl.store(part_sums + (base + part) * 2 * group + member, largest)
    tl.store(part_sums + (base + part) * 2 * group + group + member, total)
    tl.debug_barrier()  # all threads have written before one of them counts
    if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
        tl.store(counter, 0)
        at_once: tl.constexpr = 8 if group > 2 else 32 // group  # parts: as many as fit in registers
        merged = tl.zeros((group, head_dim), tl.float32)
        largest = tl.full((group,), -1.0e30, tl.float32)
        total = tl.zeros((group,), tl.float32)
        for first_part in range(0, active, at_once):
            some = first_part + tl.arange(0, at_once)
            there = (some < active)[:, None]
            sums = part_sums + (base + some)[:, None] * 2 * group + member[None, :]
            tops = tl.load(sums, there, -1.0e30)
            totals = tl.load(sums + group, there, 0.0)
            lines = ((base + some)[:, None] * group + member[None, :])[:, :, None]
            pieces = tl.load(part_mixed + lines * head_dim + column[None, None, :], there[:, :, None], 0.0)
            higher = tl.maximum(largest, tl.max(tops, axis=0))
            fade = tl.exp2(largest - higher)
            shares = tl.exp2(tops - higher[None, :])
            merged = merged * fade[:, None] + tl.sum(pieces * shares[:, :, None], axis=0)
            total = total * fade + tl.sum(totals * shares, axis=0)
            largest = higher
        mixed = merged / total[:, None]
        tl.store(place, mixed.to(kind), mine)


@triton.jit
def _read_block(
    pages, cached, start, end, slot_stride, value_offset, page_size: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """Keys and values [block, head_dim] of the tokens from `start`, and which of them are before `end`."""
    token = start + tl.arange(0, block)
    seen = token < end
    page = tl.load(pages + token // page_size, seen, 0).to(tl.int64)
    place = cached + (page * page_size + token % page_size)[:, None] * slot_stride
    return tl.load(place, seen[:, None], 0.0), tl.load(place + value_offset, seen[:, None], 0.0), seen


@triton.jit
def _attend_to_block(query, keys, values, seen, scale, largest, total, mixed):
    """Take in more tokens (online softmax: Milakov and Gimelshein 2018)."""
    scores = tl.where(seen[None, :], tl.dot(query, keys.T) * scale, -1.0e30)
    higher = tl.maximum(largest, tl.max(scores, axis=1))
    shares = tl.where(seen[None, :], tl.exp2(scores - higher[:, None]), 0.0)
    fade = tl.exp2(largest - higher)
    mixed = tl.dot(shares.to(values.dtype), values, mixed * fade[:, None])
    return higher, total * fade + tl.sum(shares, axis=1), mixed
