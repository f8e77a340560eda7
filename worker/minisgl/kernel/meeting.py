"""How a kernel of one GPU meets the same of the others, through memory that every GPU of a worker has mapped.

A rank writes into the other ranks' buffers over NVLink and then raises a flag there; a rank that has seen every
flag reads its own buffer. Program p of a kernel meets only program p of the other ranks, which all launch the same
kernels in the same order; a GPU starts programs in their order, so the first that waits anywhere is met. Flags are
counts, so nothing has to be lowered. A program's count says which of two halves of the buffer it uses this time.
What a half holds is read before its owner raises the flags of the next time, and written again no earlier than the
time after: nobody overwrites what is still read.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Mapped(NamedTuple):
    """The ranks' buffers, each of which begins with int32 flags [2, ranks, programs], all zero at first.

    Of what comes after the flags, the place in each rank's buffer, as this GPU sees it: a multiple of 16 bytes.
    """

    rank: int
    letter_rows: int
    short_rows: int
    """For which there are programs of their own; those of long messages come after them."""
    long_programs: int
    together: int
    """Rows that each of these sends at a time."""
    rows: int
    addresses: Tensor
    """int64 [ranks]: where each rank's buffer begins."""
    letters: tuple[int, ...]
    """int64 [2, ranks, letter_rows, size / 2], all zero at first."""
    arrivals: tuple[int, ...]
    """[2, ranks, rows, size]."""
    sums: tuple[int, ...]
    """[2, ranks * rows, size], or nothing where `add_rms_norm_in_two` is not called."""
    columns: tuple[int, ...]
    """[rows of logits, width of all ranks]."""
    values: tuple[int, ...]
    """int64 [rows of logits of all ranks]."""
    own_columns: Tensor
    """Those of `columns` that are this rank's."""
    counts: Tensor
    """int32 [programs], on this GPU: how often each program has met the others; zeros at first."""


def meeting_of(mapped: Mapped) -> tuple[int, int, int, int]:
    """What `meet` takes last: rank, ranks, that rounded up to a power of two, programs."""
    ranks = len(mapped.arrivals)
    lanes: int = triton.next_power_of_2(ranks)
    return mapped.rank, ranks, lanes, len(mapped.counts)


@triton.jit
def meet(
    addresses, count, program, phase: tl.constexpr, rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr,
    programs: tl.constexpr,
):  # fmt: skip
    """Wait until this program of every rank has come here for the `count`-th time.

    What each has written before, to any rank's buffer, can be read then.
    """
    raise_flags(addresses, count, program, phase, rank, ranks, lanes, programs)
    await_flags(addresses, count, program, phase, rank, ranks, lanes, programs)


@triton.jit
def raise_flags(
    addresses, count, program, phase: tl.constexpr, rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr,
    programs: tl.constexpr,
):  # fmt: skip
    tl.debug_barrier()  # every thread has written what the flags tell of, and read what may be overwritten then
    peer = tl.arange(0, lanes)
    other = (peer < ranks) & (peer != rank)
    theirs = tl.load(addresses + peer, peer < ranks, 0).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_xchg(theirs + (phase * ranks + rank) * programs + program, count, other, sem="release", scope="sys")


@triton.jit
def await_flags(
    addresses, count, program, phase: tl.constexpr, rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr,
    programs: tl.constexpr,
):  # fmt: skip
    peer = tl.arange(0, lanes)
    other = (peer < ranks) & (peer != rank)
    mine = tl.load(addresses + rank).to(tl.pointer_type(tl.int32), bitcast=True)
    late = 1
    while late > 0:
        seen = tl.atomic_add(
            mine + (phase * ranks + peer) * programs + program, 0, other, sem="acquire", scope="sys"
        )
        late = tl.sum((other & (seen - count < 0)).to(tl.int32))  # the difference is right past an overflow
    tl.debug_barrier()


@triton.jit
def place_of(address, like):
    """A pointer to what `like` points to."""
    return tl.multiple_of(address.to(tl.pointer_type(like.dtype.element_ty), bitcast=True), 16)


@triton.jit
def arrived(place, mask):
    """What another GPU has written, in float32: not from this multiprocessor's own cache."""
    return tl.load(place, mask, 0.0, cache_modifier=".cg").to(tl.float32)
