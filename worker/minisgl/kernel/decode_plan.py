"""What each program of `minisgl.kernel.decode` does, worked out on the GPU from the rows' lengths.

What a step reads is cut into units, a few tokens of a row each, and every program gets equally many of them, one
after the other, wherever rows begin and end (as "Stream-K" does it for matrix products: Osama et al. 2023).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

QUERY_HEADS = 8
"""That a program attends with at once, those of one key-value head or of several."""


class Work(NamedTuple):
    """What each program does, in all layers of a step with the same window, and memory to do it in."""

    warps: int
    """Of a program."""
    setup: int
    """Units that could be read while a program begins with a row and takes in its new token."""
    together: int
    """Key-value heads that a program reads at once."""
    tokens: int
    """Of a unit, which is read at once."""
    places: Tensor
    """int32 [programs, 5]: the row that a program begins in, the row's length, the unit in it, of all its heads;
    the program's first unit, and the one after its last.
    """
    totals: Tensor
    """int32 [2]: units, and programs that have any."""
    mixed: Tensor
    """float32 [programs, 2, lines, head_dim]: parts of the rows that a program begins and ends in. `lines`: the
    query heads of a program, filled up to a power of two, and so that no two warps merge the same ones."""
    sums: Tensor
    """float32 [2, programs, 2, lines]: of each part, the largest score in base 2, and the sum of the shares."""
    arrivals: Tensor
    """int32 [programs]: how many parts are done of the row that ends in no program before; 0 between launches."""


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan(
    lengths: Tensor, window: int | None, query_heads: int, kv_heads: int, head_dim: int, stored: torch.dtype
) -> Work:
    """Share out the tokens of D rows.

    lengths int32 [D], with the new tokens. `window`: how many tokens a token attends to, itself included.
    `stored`: type of the cache.
    """
    rows, device, group = len(lengths), lengths.device, query_heads // kv_heads
    shape = _shape(rows, kv_heads, group, stored, _processors(device))
    together, programs = shape.together, shape.programs
    tokens = max(shape.keys * 128 // head_dim // together, 1)
    lines = max(triton.next_power_of_2(together * group), shape.warps)
    work = Work(
        shape.warps,
        shape.setup,
        together,
        tokens,
        torch.empty((programs, 5), dtype=torch.int32, device=device),
        torch.empty(2, dtype=torch.int32, device=device),
        torch.empty((programs, 2, lines, head_dim), dtype=torch.float32, device=device),
        torch.empty((2, programs, 2, lines), dtype=torch.float32, device=device),
        torch.empty(programs, dtype=torch.int32, device=device),
    )
    _plan[(triton.cdiv(programs, 16),)](
        lengths, work.places, work.totals, work.arrivals, rows, kv_heads // together, programs, window or 0,
        shape.setup, tokens, max(triton.next_power_of_2(rows), 16), 16, early(), launch_pdl=early(),
    )  # fmt: skip
    return work


class _Shape(NamedTuple):
    keys: int
    """That a program reads at once, of all its heads: with 128 dimensions."""
    programs: int
    warps: int
    setup: int
    together: int


def _shape(rows: int, kv_heads: int, group: int, stored: torch.dtype, processors: int) -> _Shape:
    """Within 3 % on average of the fastest tried on an H200, for 8 to 256 rows with groups of 2, 4, 5 and 8."""
    filled = triton.next_power_of_2(group)
    together = max(QUERY_HEADS // filled, 1)
    while kv_heads % together:
        together //= 2
    if stored.itemsize > 2:
        return _Shape(32, processors, 4, 2, together)
    if stored.itemsize == 2 and group <= 2:
        return _Shape(128, processors, 8, 4, together)
    warps, setup = (4, 2) if stored.itemsize == 1 else (8 if group >= 8 else 4, 4)
    programs, more = 2 * processors, 2 * together
    fits = filled <= QUERY_HEADS and kv_heads % more == 0
    if fits and programs < rows * kv_heads // together <= 2 * programs:
        together, warps = more, 4  # so that each program has one whole row's, not two
    return _Shape(64, programs, warps, setup, together)


@triton.jit(do_not_specialize=["rows", "groups", "programs", "window"])
def _plan(
    lengths, places, totals, arrivals, rows, groups, programs, window, setup: tl.constexpr, tokens: tl.constexpr,
    block: tl.constexpr, some: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """`groups`: of heads read together."""
    begin(early)
    row = tl.arange(0, block)
    last = tl.load(lengths + row, row < rows, 1) - 1
    first = tl.where(window > 0, tl.maximum(last + 1 - window, 0), 0) // tokens * tokens
    units = tl.where(row < rows, setup + tl.cdiv(last - first, tokens), 0) * groups
    ends = tl.cumsum(units)
    total = tl.sum(units).to(tl.int64)
    # Where rows are of one length, no program should end one and begin another.
    tiles = rows * groups
    even = tl.where(tiles > programs, tiles // tl.cdiv(tiles, programs), programs // tiles * tiles)
    used = tl.minimum(total, tl.where(even * 8 >= programs * 7, even, programs))
    program = tl.program_id(0) * some + tl.arange(0, some)
    start, stop = program * total // used, (program + 1) * total // used
    before = ends[None, :] <= start[:, None]
    skipped = tl.sum(tl.where(before, units[None, :], 0), axis=1)
    there = program < programs
    place = places + 5 * program
    its_row = tl.sum(before.to(tl.int32), axis=1)
    tl.store(place, its_row, there)
    tl.store(place + 1, tl.load(lengths + its_row, its_row < rows, 1), there)
    tl.store(place + 2, (start - skipped).to(tl.int32), there)
    tl.store(place + 3, tl.where(program < used, start, 0).to(tl.int32), there)
    tl.store(place + 4, tl.where(program < used, stop, 0).to(tl.int32), there)
    tl.store(arrivals + program, 0, there)
    if tl.program_id(0) == 0:
        tl.store(totals, total.to(tl.int32))
        tl.store(totals + 1, used.to(tl.int32))
