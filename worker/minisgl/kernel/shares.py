"""What ranks tell each other of logits and tokens, when they divide a step's rows; they meet as in
`minisgl.kernel.meeting`.

The reference of each is the method of `minisgl.distributed.communicator.Communicator` without peers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early
from minisgl.kernel.meeting import Mapped, meet, meeting_of, place_of

BLOCK = 2048
"""Elements that a program of `exchange` moves."""


def exchange(mapped: Mapped, columns: Tensor) -> Tensor:
    """This rank's columns of every row [S, width] -> every column of its share of the rows [ceil(S / ranks), all].

    The result is in the buffer: valid until the next call, between which and the last reader of the result there
    must be another collective.
    """
    count, width = columns.shape
    ranks = len(mapped.columns)
    part = triton.cdiv(count, ranks)
    _send_columns[(count, triton.cdiv(width, BLOCK))](
        columns, mapped.columns, part, width, mapped.rank, ranks, BLOCK, early(), num_warps=8, launch_pdl=early()
    )
    _meet_after[(1,)](
        mapped.addresses, mapped.counts, *meeting_of(mapped), early(), num_warps=1, launch_pdl=early()
    )
    return mapped.own_columns[:part]


def collect(mapped: Mapped, own: Tensor, total: int) -> Tensor:
    """The int64 values of this rank's share of `total` rows -> those of all rows, int64 [total]."""
    start = mapped.rank * triton.cdiv(total, len(mapped.values))
    out = own.new_empty(total)
    _collect[(1,)](
        own, out, mapped.addresses, mapped.values, mapped.counts, len(own), start, total,
        triton.next_power_of_2(total), *meeting_of(mapped), early(), num_warps=4, launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _send_columns(
    columns, targets, part, width, rank: tl.constexpr, ranks: tl.constexpr, block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    begin(early)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    values = tl.load(columns + row * width + column, column < width, 0.0)
    place = (row % part * ranks + rank) * width + column
    for peer in tl.static_range(ranks):
        if row // part == peer:
            tl.store(place_of(targets[peer], columns) + place, values, column < width)


@triton.jit
def _meet_after(
    addresses, counts, rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr, programs: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """After what an earlier kernel has sent: its writes are visible to a rank that has seen the flag."""
    begin(early)
    program = tl.program_id(0)
    count = tl.load(counts + program) + 1
    meet(addresses, count, program, 0, rank, ranks, lanes, programs)
    tl.store(counts + program, count)


@triton.jit
def _collect(
    own, out, addresses, values, counts, own_count, start, total, block: tl.constexpr,
    rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr, programs: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    begin(early)
    program = tl.program_id(0)
    index = tl.arange(0, block)
    count = tl.load(counts + program) + 1
    mine = tl.load(own + index, index < own_count, 0)
    for peer in tl.static_range(ranks):
        tl.store(place_of(values[peer], own) + start + index, mine, index < own_count)
    meet(addresses, count, program, 0, rank, ranks, lanes, programs)
    everyone = tl.load(place_of(values[rank], own) + index, index < total, 0, cache_modifier=".cg")
    tl.store(out + index, everyone, index < total)
    tl.store(counts + program, count)
