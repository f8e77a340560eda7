"""Small operators of a decoder layer, each fused into one kernel: they read and write every element once.

They compute in float32 and round where the torch references round: `minisgl.layers.norm`, `.mlp`, `.attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `x` to `residual` [T, size], contiguous, in place, and return the sum normalized and times `weight`.

    x [T, size], or float32 [parts, T, size] whose sum it is.
    """
    out = torch.empty_like(residual)
    tokens, size = residual.shape
    block = triton.next_power_of_2(size)
    _add_rms_norm[(tokens,)](
        x, residual, weight, out, tokens, size, eps, len(x) if x.dim() == 3 else 0, block, early(),
        num_warps=_warps(block), launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _add_rms_norm(
    x, residual, weight, out, tokens, size, eps, parts: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):
    begin(early)
    start = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, block)
    mask = columns < size
    if parts:
        total = tl.zeros((block,), tl.float32)
        for part in tl.static_range(parts):
            total += tl.load(x + part * tokens * size + start + columns, mask, 0.0)
        total = total.to(out.dtype.element_ty).to(tl.float32)
    else:
        total = tl.load(x + start + columns, mask, 0.0).to(tl.float32)
    total += tl.load(residual + start + columns, mask, 0.0).to(tl.float32)
    rounded = total.to(residual.dtype.element_ty)
    tl.store(residual + start + columns, rounded, mask)
    total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total) / size + eps)
    scaled = total * scale * tl.load(weight + columns, mask, 0.0).to(tl.float32)
    tl.store(out + start + columns, scaled.to(out.dtype.element_ty), mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, size], contiguous -> normalized and times `weight`."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm[(x.shape[0],)](
        x, weight, out, x.shape[1], eps, block, early(), num_warps=_warps(block), launch_pdl=early()
    )
    return out


@triton.jit
def _rms_norm(x, weight, out, size, eps, block: tl.constexpr, early: tl.constexpr):
    begin(early)
    start = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, block)
    mask = columns < size
    values = tl.load(x + start + columns, mask, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / size + eps)
    scaled = values * scale * tl.load(weight + columns, mask, 0.0).to(tl.float32)
    tl.store(out + start + columns, scaled.to(out.dtype.element_ty), mask)


def gather(table: Tensor, index: Tensor, *, first: int = 0, apart: bool = False) -> Tensor:
    """Rows [T, size] by int64 [T]; torch takes microseconds more for a few. A row that is not there is zeros.

    table [n, size], contiguous: the rows from `first` on. `apart`: begin when all kernels before have ended, as
    one of a library does.
    """
    out = table.new_empty((len(index), table.shape[1]))
    if len(index):
        block = min(triton.next_power_of_2(table.shape[1]), 1024)
        grid = len(index), triton.cdiv(table.shape[1], block)
        _gather[grid](
            table, index, out, table.shape[1], first, len(table), block, early(), launch_pdl=early() and not apart
        )
    return out


@triton.jit(do_not_specialize=["first", "rows"])
def _gather(table, index, out, size, first, rows, block: tl.constexpr, early: tl.constexpr):
    begin(early)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    place = tl.load(index + row) - first
    there = (place >= 0) & (place < rows)
    values = tl.load(table + place * size + columns, there & (columns < size), 0.0)
    tl.store(out + row * size + columns, values, columns < size)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 n], contiguous -> ``silu(first half) * second half`` [T, n]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, size))
    if rows:
        _silu_and_mul[(rows, triton.cdiv(size, 1024))](gate_up, out, size, 1024, early(), launch_pdl=early())
    return out


@triton.jit
def _silu_and_mul(gate_up, out, size, block: tl.constexpr, early: tl.constexpr):
    begin(early)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    mask = columns < size
    gate = tl.load(gate_up + row * 2 * size + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + columns, mask, 0.0).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + columns, (gate * up).to(out.dtype.element_ty), mask)


def rotate_and_store(
    heads: Tensor, kv_heads: int, norms: tuple[Tensor, Tensor, float] | None, rotation: Tensor, cache: Tensor,
    slots: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalize and rotate query and key heads; store keys and values in the KV cache.

    heads [T, heads + 2 kv_heads, head_dim], contiguous: queries, keys, values; norms: weights [head_dim] of query
    and key heads, and epsilon; rotation float32 [T, 2, head_dim] from `Rotary.at`; cache [slots, 2, kv_heads,
    head_dim], of their type or FP8 (E4M3); slots int64 [T] -> query [T, heads, head_dim], and key and value
    [T, kv_heads, head_dim].
    """
    tokens, every, head_dim = heads.shape
    query_heads = every - 2 * kv_heads
    query = heads.new_empty((tokens, query_heads, head_dim))
    key = heads.new_empty((tokens, kv_heads, head_dim))
    query_weight, key_weight, eps = norms or (rotation, rotation, 0.0)
    block = triton.next_power_of_2(head_dim // 2)
    # Of one program: few, as long as there are not enough programs; then so many that each thread has 32 pairs.
    head_block, warps = (8, 4) if tokens <= 1024 else (min(triton.next_power_of_2(every), 64), 1)
    warps = max(warps, head_block * block // 1024)
    _rotate_and_store[(tokens, triton.cdiv(every, head_block))](
        heads, query_weight, key_weight, rotation, cache, slots, query, key, eps, cache.stride(0),
        query_heads, kv_heads, head_dim, norms is not None, head_block, block, early(),
        num_warps=warps, launch_pdl=early(),
    )  # fmt: skip
    return query, key, heads[:, query_heads + kv_heads :]


@triton.jit
def _rotate_and_store(
    heads, query_weight, key_weight, rotation, cache, slots, query, key, eps, slot_stride,
    query_heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr, normalize: tl.constexpr,
    head_block: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """A dimension of a head's low half is rotated with its pair in the high half."""
    begin(early)
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * head_block + tl.arange(0, head_block))[:, None]
    half: tl.constexpr = head_dim // 2
    column = tl.arange(0, block)[None, :]
    inside = column < half
    every: tl.constexpr = query_heads + 2 * kv_heads
    mask = (head < every) & inside
    is_query = head < query_heads
    is_value = head >= query_heads + kv_heads
    kind: tl.constexpr = heads.dtype.element_ty
    base = heads + (token * every + head) * head_dim + column
    low_value, high_value = tl.load(base, mask, 0.0), tl.load(base + half, mask, 0.0)
    low, high = low_value.to(tl.float32), high_value.to(tl.float32)
    if normalize:
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=1) / head_dim + eps)[:, None]
        weight = tl.where(is_query, query_weight + column, key_weight + column)
        low = (low * scale * tl.load(weight, mask, 0.0).to(tl.float32)).to(kind).to(tl.float32)
        high = (high * scale * tl.load(weight + half, mask, 0.0).to(tl.float32)).to(kind).to(tl.float32)
    cos = rotation + token * 2 * head_dim + column
    sin = cos + head_dim
    low_turned = low * tl.load(cos, inside, 0.0) + high * tl.load(sin, inside, 0.0)
    high_turned = high * tl.load(cos + half, inside, 0.0) + low * tl.load(sin + half, inside, 0.0)
    low_turned, high_turned = low_turned.to(kind), high_turned.to(kind)
    place = query + (token * query_heads + head) * head_dim + column
    tl.store(place, low_turned, mask & is_query)
    tl.store(place + half, high_turned, mask & is_query)
    is_key = (head >= query_heads) & (head < query_heads + kv_heads)
    place = key + (token * kv_heads + head - query_heads) * head_dim + column
    tl.store(place, low_turned, mask & is_key)
    tl.store(place + half, high_turned, mask & is_key)
    # A slot is [2, kv_heads, head_dim]: its heads follow each other as they do here after the queries.
    place = cache + tl.load(slots + token) * slot_stride + (head - query_heads) * head_dim + column
    stored = mask & (head >= query_heads)
    tl.store(place, as_stored(tl.where(is_value, low_value, low_turned), cache), stored)
    tl.store(place + half, as_stored(tl.where(is_value, high_value, high_turned), cache), stored)


@triton.jit
def as_stored(values, cache):
    """`values` in the type that `cache` points to."""
    if cache.dtype.element_ty == tl.float8e4nv:
        values = tl.clamp(values.to(tl.float32), -448.0, 448.0)  # its largest numbers
    return values.to(cache.dtype.element_ty)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)
