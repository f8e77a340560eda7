"""Attention of one token in each row: rotation, storing and attention in one kernel, planned on the device.

Every program reads equally much, wherever rows begin and end (`minisgl.kernel.decode_plan`). The programs that
share a row leave their results in scratch memory; the last of them to finish merges these ("flash decoding", Dao
et al. 2023), in the order of the parts, so that the result does not depend on which one was last.

Key-value heads lie next to each other in memory. A program reads several of them at once, as if they were more
tokens, and masks what a query head does not attend to: long reads are faster, and the rows of the matrix product,
too few for it otherwise, are there anyway. The references are `minisgl.layers.attention` and
`minisgl.attention.torch_backend`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.decode_plan import Work
from minisgl.kernel.launch import early, let_next_start, wait_for_earlier
from minisgl.kernel.layers import as_stored

STAGES = 3
"""So many reads, less one, are under way at a time."""
MERGED = 8192
"""Numbers of parts that are merged at once: as many as fit in registers."""


def decode(
    heads: Tensor, kv_heads: int, norms: tuple[Tensor, Tensor, float] | None, rotation: Tensor, cache: Tensor,
    page_size: int, tables: Tensor, lengths: Tensor, window: int | None, work: Work,
) -> Tensor:  # fmt: skip
    """heads [D, heads + 2 kv_heads, head_dim], contiguous: queries, keys, values -> [D, heads, head_dim].

    norms, rotation, cache as for `minisgl.kernel.layers.rotate_and_store`, which it does as well; head_dim a
    power of two; tables int32 [D, pages] and lengths int32 [D]: each row's pages, and its tokens with the new one;
    `work` from `decode_plan.plan`, which is read before this kernel waits: between the two there must be a kernel
    that begins apart, as that of `Rotary.at` does.
    """
    rows, every, head_dim = heads.shape
    query_heads = every - 2 * kv_heads
    out = heads.new_empty((rows, query_heads, head_dim))
    query_weight, key_weight, eps = norms or (rotation, rotation, 0.0)
    programs, _, lines, _ = work.mixed.shape
    _decode[(programs,)](
        heads, query_weight, key_weight, rotation, cache, tables, lengths, *work[4:], out, eps,
        head_dim**-0.5 * 1.4426950408889634, tables.shape[1], window or 0, query_heads, kv_heads, head_dim,
        norms is not None, page_size, work.tokens, work.together, lines, max(MERGED // (lines * head_dim), 1),
        work.setup, early(), num_warps=work.warps, num_stages=STAGES, launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _decode(
    heads, query_weight, key_weight, rotation, cache, tables, lengths, places, totals, part_mixed, part_sums,
    arrivals, out, eps, scale, width, window: tl.constexpr, query_heads: tl.constexpr, kv_heads: tl.constexpr,
    head_dim: tl.constexpr, normalize: tl.constexpr, page_size: tl.constexpr, tokens: tl.constexpr,
    together: tl.constexpr, lines: tl.constexpr, at_once: tl.constexpr, setup: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """`scale` includes log2(e): shares are powers of two. `at_once`: parts that are merged at once."""
    let_next_start(early)
    program = tl.program_id(0)
    place = places + 5 * program
    row, length, inside = tl.load(place).to(tl.int64), tl.load(place + 1), tl.load(place + 2)
    unit, end = tl.load(place + 3), tl.load(place + 4)
    if unit == end:
        wait_for_earlier(early)
        return
    kind: tl.constexpr = heads.dtype.element_ty
    group: tl.constexpr = query_heads // kv_heads
    slot_stride: tl.constexpr = 2 * kv_heads * head_dim
    wait_for_earlier(early)
    start_unit = unit
    member, column = tl.arange(0, lines), tl.arange(0, head_dim)
    other = (column + head_dim // 2) % head_dim  # the dimension that each one is paired with
    mine = (member < together * group)[:, None]
    line = tl.arange(0, tokens * together)  # of what is read at once: each token's heads follow each other
    token = line // together
    own = (member // group)[:, None] == (line % together)[None, :]
    while unit < end:
        last = length - 1  # the new token's position
        base, blocks = _units(last, window, tokens, setup)
        first_head, at = inside // blocks * together, inside % blocks
        count = tl.minimum(blocks - at, end - unit)
        low = base + tl.maximum(at - setup, 0) * tokens
        high = tl.minimum(base + tl.maximum(at + count - setup, 0) * tokens, last)
        # In one page, a unit's tokens need no more than one look at the table.
        step = 0 if page_size % tokens == 0 else token
        spread = (token - step) * slot_stride + line % together * head_dim
        table = tables + row * width
        page = tl.load(table + (low + step) // page_size, low + step < high, 0).to(tl.int64)
        turn = rotation + row * 2 * head_dim + column
        cos, sin = tl.load(turn)[None, :], tl.load(turn + head_dim)[None, :]
        new = heads + row * (query_heads + 2 * kv_heads) * head_dim
        query_head = (first_head * group + member)[:, None]
        query = turned(new, query_head, mine, query_weight, column, other, cos, sin, eps, head_dim, normalize)
        cached = cache + first_head * head_dim + column[None, :]
        largest = tl.full((lines,), -1.0e30, tl.float32)
        sums = tl.zeros((lines, tokens * together), tl.float32)
        mixed = tl.zeros((lines, head_dim), tl.float32)
        for start in tl.range(low, high, tokens):
            slot = page * page_size + (start + step) % page_size
            # The next pages are looked up early, so that their keys can be fetched while these are computed with.
            following = start + tokens + step
            page = tl.load(table + following // page_size, following < high, 0).to(tl.int64)
            source = cached + (slot * slot_stride + spread)[:, None]
            seen = start + token < high
            if window > 0:
                seen = seen & (start + token > last - window)
            keys = tl.load(source, seen[:, None], 0.0).to(kind)
            scores = tl.where(own & seen[None, :], tl.dot(query, keys.T) * scale, -float("inf"))
            higher = tl.maximum(largest, tl.max(scores, axis=1))
            fade = tl.exp2(largest - higher)
            shares = tl.exp2(scores - higher[:, None])
            sums = sums * fade[:, None] + shares
            values = tl.load(source + kv_heads * head_dim, seen[:, None], 0.0).to(kind)
            mixed = tl.dot(shares.to(kind), values, mixed * fade[:, None])
            largest = higher
        total = tl.sum(sums, axis=1)
        if at == 0:
            head = member // group
            key_head = (query_heads + first_head + head)[:, None]
            key = turned(new, key_head, mine, key_weight, column, other, cos, sin, eps, head_dim, normalize)
            value = tl.load(new + (key_head + kv_heads) * head_dim + column[None, :], mine, 0.0)
            slot = tl.load(table + last // page_size).to(tl.int64) * page_size + last % page_size
            target = cached + slot * slot_stride + head[:, None] * head_dim
            stored_key, stored_value = as_stored(key, cache), as_stored(value, cache)
            once = mine & (member % group == 0)[:, None]
            tl.store(target, stored_key, once)
            tl.store(target + kv_heads * head_dim, stored_value, once)
            score = tl.sum(query.to(tl.float32) * stored_key.to(kind).to(tl.float32), axis=1) * scale
            higher = tl.maximum(largest, score)
            fade = tl.exp2(largest - higher)
            share = tl.exp2(score - higher)
            total = total * fade + share
            mixed = mixed * fade[:, None] + stored_value.to(kind).to(tl.float32) * share[:, None]
            largest = higher
        result = out + (row * query_heads + query_head) * head_dim + column[None, :]
        if count == blocks:
            tl.store(result, (mixed / total[:, None]).to(kind), mine)
        else:
            # Program p begins with unit p * units // used, so who begins and who ends this row's heads is known.
            units, used = tl.load(totals).to(tl.int64), tl.load(totals + 1)
            opening = (unit - at).to(tl.int64)
            leader = ((opening + 1) * used - 1) // units
            parts = (((opening + blocks) * used - 1) // units - leader + 1).to(tl.int32)
            plane = tl.num_programs(0) * 2 * lines
            part_line = (2 * program + (opening > start_unit)) * lines + member
            tl.store(part_mixed + part_line[:, None] * head_dim + column[None, :], mixed)
            tl.store(part_sums + part_line, largest)
            tl.store(part_sums + plane + part_line, total)
            tl.debug_barrier()  # all threads have written before one of them counts
            if tl.atomic_add(arrivals + leader, 1, sem="acq_rel") == parts - 1:
                tl.store(arrivals + leader, 0)
                late = (opening > leader * units // used).to(tl.int32)  # the first part is its program's second
                mixed, total = _merge(
                    part_mixed, part_sums, plane, 2 * leader.to(tl.int32), late, parts, lines, head_dim, at_once
                )  # fmt: skip
                tl.store(result, (mixed / total[:, None]).to(kind), mine)
        unit += count
        inside += count
        if inside == blocks * (kv_heads // together):
            inside = 0
            row += 1
            length = tl.load(lengths + row, unit < end, 1)


@triton.jit
def _merge(
    part_mixed, part_sums, plane, first, late, parts, lines: tl.constexpr, head_dim: tl.constexpr,
    at_once: tl.constexpr,
):  # fmt: skip
    """The sums of all parts of some heads, [lines, head_dim], and of their shares, [lines].

    The parts are every second from `first` on; the first one is the next after it if `late`.
    """
    member, column = tl.arange(0, lines), tl.arange(0, head_dim)
    largest = tl.full((lines,), -1.0e30, tl.float32)
    total = tl.zeros((lines,), tl.float32)
    mixed = tl.zeros((lines, head_dim), tl.float32)
    for done in range(0, parts, at_once):
        part = done + tl.arange(0, at_once)
        there = (part < parts)[None, :]
        line = ((first + 2 * part + tl.where(part == 0, late, 0)) * lines)[None, :] + member[:, None]
        tops = tl.load(part_sums + line, there, -1.0e30, cache_modifier=".cg")
        totals = tl.load(part_sums + plane + line, there, 0.0, cache_modifier=".cg")
        place = part_mixed + line[:, :, None] * head_dim + column[None, None, :]
        pieces = tl.load(place, there[:, :, None], 0.0, cache_modifier=".cg")
        higher = tl.maximum(largest, tl.max(tops, axis=1))
        fade = tl.exp2(largest - higher)
        shares = tl.exp2(tops - higher[:, None])
        mixed = mixed * fade[:, None] + tl.sum(pieces * shares[:, :, None], axis=1)
        total = total * fade + tl.sum(totals * shares, axis=1)
        largest = higher
    return mixed, total


@triton.jit
def _units(last, window: tl.constexpr, tokens: tl.constexpr, setup: tl.constexpr):
    """Where the tokens begin that a new one at `last` attends to, rounded down, and how many units they make.

    The first `setup` units stand for the new token, and for what it takes to begin with a row.
    """
    base = 0
    if window > 0:
        base = tl.maximum(last + 1 - window, 0) // tokens * tokens
    return base, setup + tl.cdiv(last - base, tokens)


@triton.jit
def turned(
    new, head, mask, weight, column, other, cos, sin, eps, head_dim: tl.constexpr, normalize: tl.constexpr
):  # fmt: skip
    """Heads [n, head_dim] of the new token, normalized and rotated, as `rotate_and_store` does it."""
    x = tl.load(new + head * head_dim + column[None, :], mask, 0.0)
    kind: tl.constexpr = x.dtype
    x = x.to(tl.float32)
    paired = tl.load(new + head * head_dim + other[None, :], mask, 0.0).to(tl.float32)
    if normalize:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / head_dim + eps)[:, None]
        x = (x * scale * tl.load(weight + column)[None, :].to(tl.float32)).to(kind).to(tl.float32)
        paired = (paired * scale * tl.load(weight + other)[None, :].to(tl.float32)).to(kind).to(tl.float32)
    return (x * cos + paired * sin).to(kind)
