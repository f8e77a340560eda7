"""Attention over the paged KV cache that is planned on the device: nothing in its launches depends on the host.

The queries of a step are cut into tiles: neighbouring tokens of one row. With the query heads that share a
key-value head they fill the rows of a matrix product. `plan` cuts the keys of every tile into parts, all of about
the same length, so that there are as many parts as the GPU runs at once (Dao et al. 2023, "Flash-Decoding").
`attend` does each part by online softmax (Milakov and Gimelshein 2018, algorithm 3); the last part of a tile to be
done adds up all of them, always in the same order, so that a repeated step gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

KEYS = 64
"""Keys that a program reads at once."""
STAGES = 3
LOW_TILE = 16
"""Rows of a tile that is a matter of memory alone, as a decode row is: it does not fill the larger tiles."""
MOST_PARTS = 32
"""Of a tile. A power of two."""
START = 128
"""What beginning a part takes, and what adding one up takes, in keys that could be read meanwhile."""
MERGE = 64
FIELDS = 9
"""Of a part in `Plan.parts`: the tile's row, first token, tokens and first position; the part's first key and the
one after its last; where the tile's parts begin in the scratch memory; which of them it is; how many they are."""


class Scratch(NamedTuple):
    """Memory for parts to be added up, of kernels that run one after the other."""

    sums: Tensor
    """float32 [parts, kv_heads, rows of a tile, head_dim]."""
    weights: Tensor
    """float32 [2, parts, kv_heads, rows of a tile]: the largest score in base 2, and the sum of the shares."""
    arrivals: Tensor
    """int32 [parts, kv_heads]: how many parts of a tile are done; 0 between launches."""

    @staticmethod
    def make(programs: int, kv_heads: int, tile_rows: int, head_dim: int, device: torch.device) -> Scratch:
        """`programs`: as for `plan`."""
        # `plan` makes so many parts more than tiles; a tile of several parts has at most twice as many as that.
        shape = (2 * max(programs // kv_heads, 1), kv_heads, tile_rows)
        return Scratch(
            torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
            torch.empty((2, *shape), dtype=torch.float32, device=device),
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
        )


class Plan(NamedTuple):
    """How the keys of a step's tiles are cut into parts, for one window."""

    parts: Tensor
    """int32 [FIELDS, most parts]."""
    number: Tensor
    """int32 [1]: how many there are."""


def plan(tiles: Tensor, window: int | None, kv_heads: int, programs: int) -> Plan:
    """Cut the keys that `tiles` see into parts, such that `programs` are done soonest.

    tiles int64 [4, N], contiguous: the row, the first of its tokens among the step's, the number of tokens (0: no
    tile), the position of the first. `window`: how many tokens a token sees, itself included. None: all before it.
    """
    count, target = tiles.shape[1], max(programs // kv_heads, 1)
    made = Plan(
        torch.empty((FIELDS, count + target), dtype=torch.int32, device=tiles.device),
        torch.empty(1, dtype=torch.int32, device=tiles.device),
    )
    _plan_tiles[(1,)](
        tiles, *made, count, target, kv_heads, programs, window or 0, KEYS, MOST_PARTS, START, MERGE,
        max(triton.next_power_of_2(count), 16), early(), num_warps=8, launch_pdl=early(),
    )  # fmt: skip
    return made


@triton.jit
def _plan_tiles(
    tiles, parts, number, tile_count, target, kv_heads, programs, window, keys: tl.constexpr, most: tl.constexpr,
    start: tl.constexpr, merge: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    begin(early)
    tile = tl.arange(0, block)
    inside = tile < tile_count
    row, token = tl.load(tiles + tile, inside, 0), tl.load(tiles + tile_count + tile, inside, 0)
    tokens = tl.load(tiles + 2 * tile_count + tile, inside, 0).to(tl.int32)
    position = tl.load(tiles + 3 * tile_count + tile, inside, 0).to(tl.int32)
    low = tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)
    high = tl.where(tokens > 0, position + tokens, low)
    # For each number of parts that the longest tile may be cut into: all parts of that length, and what they take.
    choice = tl.arange(0, most)
    length = tl.cdiv(tl.cdiv(tl.max(high - low), choice + 1), keys) * keys
    total = tl.sum(tl.cdiv((high - low)[None, :], tl.maximum(length, 1)[:, None]), axis=1)
    cost = tl.cdiv(total * kv_heads, programs) * (length + start) + choice * merge
    fits = total - tl.sum((high > low).to(tl.int32)) <= target
    chosen = tl.argmin(tl.where(fits, cost, 2147483647), axis=0)
    limit = tl.maximum(tl.sum(tl.where(choice == chosen, length, 0)), 1)
    # The parts of a tile are as long as each other.
    length = tl.cdiv(tl.cdiv(high - low, tl.maximum(tl.cdiv(high - low, limit), 1)), keys) * keys
    count = tl.cdiv(high - low, tl.maximum(length, 1))
    first = tl.cumsum(count) - count
    several = tl.where(count > 1, count, 0)
    scratch = tl.cumsum(several) - several
    stride = tile_count + target
    for index in range(tl.max(count)):
        place = parts + first + index
        there = index < count
        tl.store(place, row.to(tl.int32), there)
        tl.store(place + stride, token.to(tl.int32), there)
        tl.store(place + 2 * stride, tokens, there)
        tl.store(place + 3 * stride, position, there)
        tl.store(place + 4 * stride, low + index * length, there)
        tl.store(place + 5 * stride, tl.minimum(low + (index + 1) * length, high), there)
        tl.store(place + 6 * stride, scratch, there)
        tl.store(place + 7 * stride, tl.zeros_like(count) + index, there)
        tl.store(place + 8 * stride, count, there)
    tl.store(number, tl.sum(count))


def attend(
    query: Tensor, layer: Tensor, tables: Tensor, made: Plan, window: int | None, scratch: Scratch, programs: int,
    out: Tensor,
) -> None:  # fmt: skip
    """Attention of the planned tiles, written to `out`; tokens in no tile are left as they are.

    query and out [T, heads, head_dim], half precision, contiguous but for the first dimension; layer [pages,
    page_size, 2, kv_heads, head_dim], contiguous, in half precision or FP8; tables int32 [rows, pages of a row].
    `scratch` has the tiles' number of rows, which bounds their tokens: ``tokens * (heads / kv_heads) <= rows``.
    """
    page_size, kv_heads, head_dim = layer.shape[1], layer.shape[3], layer.shape[4]
    tile_rows, most = scratch.sums.shape[2], made.parts.shape[1]
    _attend[(min(most * kv_heads, programs),)](
        query, layer, tables, made.parts, made.number, *scratch, out, query.stride(0), out.stride(0),
        tables.stride(0), most, head_dim**-0.5 * 1.4426950408889634, scratch.weights.stride(0),
        query.shape[1] // kv_heads, kv_heads, page_size, head_dim, window or 0, tile_rows, LOW_TILE, KEYS, early(),
        num_warps=8 if tile_rows >= 128 else 4, num_stages=2 if head_dim > 128 else STAGES, launch_pdl=early(),
    )  # fmt: skip


@triton.jit
def _attend(
    query, cache, tables, parts, number, sums, weights, arrivals, out, query_stride, out_stride, table_stride,
    part_stride, scale, weight_stride, group: tl.constexpr, kv_heads: tl.constexpr, page_size: tl.constexpr,
    head_dim: tl.constexpr, window: tl.constexpr, rows: tl.constexpr, low_rows: tl.constexpr, keys: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    begin(early)
    for index in range(tl.program_id(0), tl.load(number) * kv_heads, tl.num_programs(0)):
        part = parts + index // kv_heads
        if tl.load(part + 2 * part_stride) * group <= low_rows:
            _attend_part(
                query, cache, tables, part, sums, weights, arrivals, out, query_stride, out_stride, table_stride,
                part_stride, scale, weight_stride, index % kv_heads, group, kv_heads, page_size, head_dim, window,
                low_rows, rows, keys,
            )  # fmt: skip
        elif rows > low_rows:
            _attend_part(
                query, cache, tables, part, sums, weights, arrivals, out, query_stride, out_stride, table_stride,
                part_stride, scale, weight_stride, index % kv_heads, group, kv_heads, page_size, head_dim, window,
                rows, rows, keys,
            )  # fmt: skip


@triton.jit
def _attend_part(
    query, cache, tables, part, sums, weights, arrivals, out, query_stride, out_stride, table_stride, part_stride,
    scale, weight_stride, head, group: tl.constexpr, kv_heads: tl.constexpr, page_size: tl.constexpr,
    head_dim: tl.constexpr, window: tl.constexpr, rows: tl.constexpr, scratch_rows: tl.constexpr,
    keys: tl.constexpr,
):  # fmt: skip
    """One part of a tile that fills at most `rows`, for one key-value head."""
    row, column = tl.arange(0, rows), tl.arange(0, head_dim)
    table = tables + tl.load(part).to(tl.int64) * table_stride
    token = tl.load(part + part_stride).to(tl.int64)
    tokens, position = tl.load(part + 2 * part_stride), tl.load(part + 3 * part_stride)
    low, high = tl.load(part + 4 * part_stride), tl.load(part + 5 * part_stride)
    first, place = tl.load(part + 6 * part_stride), tl.load(part + 7 * part_stride)
    count = tl.load(part + 8 * part_stride)

    there = (row < tokens * group)[:, None]
    element = (head * group + row % group)[:, None] * head_dim + column[None, :]
    out_place = out + (token + row // group)[:, None] * out_stride + element
    queries = tl.load(query + (token + row // group)[:, None] * query_stride + element, there, 0.0)
    positions = position + row // group
    head_cache = cache + head * head_dim + column[None, :]
    most = tl.full((rows,), -1e30, tl.float32)  # finite: a row that sees no key of the part leaves no NaN
    total = tl.zeros((rows,), tl.float32)
    sum_ = tl.zeros((rows, head_dim), tl.float32)
    seen = low  # up to where all of the tile's tokens see every key
    if window == 0:
        seen += tl.maximum(tl.minimum(high, position + 1) - low, 0) // keys * keys
        most, total, sum_ = _read_keys(
            queries, positions, head_cache, table, low, seen, scale, most, total, sum_,
            kv_heads, page_size, head_dim, window, keys, False,
        )  # fmt: skip
    most, total, sum_ = _read_keys(
        queries, positions, head_cache, table, seen, high, scale, most, total, sum_,
        kv_heads, page_size, head_dim, window, keys, True,
    )  # fmt: skip
    if count == 1:
        tl.store(out_place, (sum_ / total[:, None]).to(out.dtype.element_ty), there)
    else:
        first_row = (first * kv_heads + head).to(tl.int64) * scratch_rows + row
        step = kv_heads * scratch_rows  # from a part of the tile to its next
        own = first_row + place * step
        tl.store(weights + own, most)
        tl.store(weights + weight_stride + own, total)
        tl.store(sums + own[:, None] * head_dim + column[None, :], sum_, there)
        tl.debug_barrier()  # all of the program's threads have written
        arrival = arrivals + first * kv_heads + head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == count - 1:
            most = tl.full((rows,), -1e30, tl.float32)
            total = tl.zeros((rows,), tl.float32)
            sum_ = tl.zeros((rows, head_dim), tl.float32)
            for other in tl.range(count, num_stages=3 if head_dim <= 128 else 1):
                its = first_row + other * step
                its_most = tl.load(weights + its, cache_modifier=".cg")
                its_total = tl.load(weights + weight_stride + its, cache_modifier=".cg")
                its_sum = tl.load(sums + its[:, None] * head_dim + column[None, :], cache_modifier=".cg")
                new = tl.maximum(most, its_most)
                shrink, weight = tl.exp2(most - new), tl.exp2(its_most - new)
                total = total * shrink + its_total * weight
                sum_ = sum_ * shrink[:, None] + its_sum * weight[:, None]
                most = new
            tl.store(out_place, (sum_ / total[:, None]).to(out.dtype.element_ty), there)
            tl.store(arrival, 0)


@triton.jit
def _read_keys(
    queries, positions, cache, table, low, high, scale, most, total, sum_, kv_heads: tl.constexpr,
    page_size: tl.constexpr, head_dim: tl.constexpr, window: tl.constexpr, keys: tl.constexpr,
    masked: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys at positions ``low .. high - 1``; unless `masked`, every token sees all."""
    position = low + tl.arange(0, keys)
    page = tl.load(table + position // page_size, position < high, 0).to(tl.int64)
    for start in tl.range(low, high, keys):
        position = start + tl.arange(0, keys)
        slot = page * page_size + position % page_size
        # The next pages are looked up early, so that their keys can be fetched while these are computed with.
        page = tl.load(table + (position + keys) // page_size, position + keys < high, 0).to(tl.int64)
        place = cache + slot[:, None] * (2 * kv_heads * head_dim)
        scores = tl.dot(queries, tl.trans(tl.load(place).to(queries.dtype))) * scale
        if masked:
            visible = (position < high)[None, :] & (position[None, :] <= positions[:, None])
            if window > 0:
                visible = visible & (position[None, :] > positions[:, None] - window)
            scores = tl.where(visible, scores, -float("inf"))
        new = tl.maximum(most, tl.max(scores, axis=1))
        shrink = tl.exp2(most - new)
        share = tl.exp2(scores - new[:, None])
        total = total * shrink + tl.sum(share, axis=1)
        values = tl.load(place + kv_heads * head_dim).to(queries.dtype)
        sum_ = tl.dot(share.to(values.dtype), values, sum_ * shrink[:, None])
        most = new
    return most, total, sum_
