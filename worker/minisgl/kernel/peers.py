"""Sums over ranks of a step's hidden states, with the norm after them; ranks meet as in `minisgl.kernel.meeting`.

The fewest bytes go by letter: each 8 bytes hold 4 of the message and the count, so that a rank sees from the
message itself that it is there. That spares the sender the wait, before it may raise a flag, for all that it wrote
to have arrived. (NCCL calls this protocol LL.)

The reference of each is `Communicator.all_reduce` without peers, and `minisgl.kernel.layers.add_rms_norm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early
from minisgl.kernel.meeting import Mapped, arrived, await_flags, meet, meeting_of, place_of, raise_flags


def add_rms_norm_by_letter(mapped: Mapped, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Sum x [T, size] over the ranks, add it to `residual` in place -> the sum normalized and times `weight`.

    T is at most `mapped.letter_rows`, size is even, and numbers have 16 bits.
    """
    out = torch.empty_like(x)
    pairs = x.shape[1] // 2
    both = (tensor.view(torch.int32) for tensor in (x, residual, weight, out))
    _sum_by_letter[(len(x),)](
        *both, x, mapped.letters, mapped.counts, pairs, mapped.letter_rows, eps, triton.next_power_of_2(pairs),
        mapped.rank, len(mapped.letters), early(), num_warps=_warps(x.shape[1]), launch_pdl=early(),
    )  # fmt: skip
    return out


def add_rms_norm_at_once(mapped: Mapped, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same for T up to `mapped.short_rows`, any size and type. Every rank sends every row to every other."""
    out = torch.empty_like(x)
    size = x.shape[1]
    _sum_at_once[(len(x),)](
        x, residual, weight, out, mapped.addresses, mapped.arrivals, mapped.counts, size, mapped.rows, eps,
        triton.next_power_of_2(size), *meeting_of(mapped), early(), num_warps=_warps(size), launch_pdl=early(),
    )  # fmt: skip
    return out


def add_rms_norm_in_turns(mapped: Mapped, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same for any T: a program sends some rows while those that it has sent before are on their way."""
    out = torch.empty_like(x)
    (tokens, size), together = x.shape, mapped.together
    programs = min(mapped.long_programs, triton.cdiv(tokens, together))
    _sum_in_turns[(programs,)](
        x, residual, weight, out, mapped.addresses, mapped.arrivals, mapped.counts, tokens,
        triton.cdiv(tokens, programs * together), size, mapped.rows, mapped.short_rows, mapped.long_programs, eps,
        triton.next_power_of_2(size), together, *meeting_of(mapped), early(), num_warps=_warps(size),
        launch_pdl=early(),
    )  # fmt: skip
    return out


def add_rms_norm_in_two(mapped: Mapped, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same: a row is summed by one rank, which sends the sum to the others.

    T is at most `ranks` times `mapped.rows`.
    """
    out = torch.empty_like(x)
    size = x.shape[1]
    _sum_in_two[(triton.cdiv(len(x), len(mapped.arrivals)),)](
        x, residual, weight, out, mapped.addresses, mapped.arrivals, mapped.sums, mapped.counts, len(x), size,
        mapped.rows, eps, triton.next_power_of_2(size), *meeting_of(mapped), early(), num_warps=_warps(size),
        launch_pdl=early(),
    )  # fmt: skip
    return out


@triton.jit
def _sum_by_letter(
    x, residual, weight, out, like, letters, counts, pairs, rows, eps, block: tl.constexpr, rank: tl.constexpr,
    ranks: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Numbers come in pairs, of 32 bits; `like` points to what they are."""
    begin(early)
    program = tl.program_id(0)
    row = program.to(tl.int64)
    pair = tl.arange(0, block)
    mask = pair < pairs
    count = tl.load(counts + program) + 1
    half = (count & 1) * ranks
    own = tl.load(x + row * pairs + pair, mask, 0)
    letter = (count.to(tl.int64) << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    for peer in tl.static_range(ranks):
        if peer != rank:
            theirs = letters[peer].to(tl.pointer_type(tl.int64), bitcast=True)
            tl.store(theirs + ((half + rank) * rows + row) * pairs + pair, letter, mask)
    before = tl.load(residual + row * pairs + pair, mask, 0)
    factors = tl.load(weight + pair, mask, 0)
    low = tl.zeros((block,), tl.float32)
    high = tl.zeros((block,), tl.float32)
    mine = letters[rank].to(tl.pointer_type(tl.int64), bitcast=True)
    for peer in tl.static_range(ranks):  # in one order on every rank, so that all hold the same bits
        numbers = own
        if peer != rank:
            numbers = _read_letters(mine + ((half + peer) * rows + row) * pairs + pair, mask, count, block)
        low += _low(numbers, like)
        high += _low(numbers >> 16, like)
    low += _low(before, like)
    high += _low(before >> 16, like)
    rounded = _joined(low, high, like)
    tl.store(residual + row * pairs + pair, rounded, mask)
    low = _low(rounded, like)
    high = _low(rounded >> 16, like)
    scale = tl.rsqrt(tl.sum(low * low + high * high) / (2 * pairs) + eps)
    low *= scale * _low(factors, like)
    high *= scale * _low(factors >> 16, like)
    tl.store(out + row * pairs + pair, _joined(low, high, like), mask)
    tl.store(counts + program, count)


@triton.jit
def _read_letters(place, mask, count, block: tl.constexpr):
    """What they say, int32, when all have come that were sent the `count`-th time."""
    letter = tl.zeros((block,), tl.int64)
    late = 1
    while late > 0:
        letter = tl.load(place, mask, 0, volatile=True)
        late = tl.sum((mask & ((letter >> 32).to(tl.int32) - count < 0)).to(tl.int32))
    return letter.to(tl.int32)


@triton.jit
def _low(numbers, like):
    """The lower of each pair, in float32."""
    return numbers.to(tl.int16).to(like.dtype.element_ty, bitcast=True).to(tl.float32)


@triton.jit
def _joined(low, high, like):
    """float32 -> pairs."""
    lower = low.to(like.dtype.element_ty).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return lower | (high.to(like.dtype.element_ty).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _sum_at_once(
    x, residual, weight, out, addresses, arrivals, counts, size, rows, eps, block: tl.constexpr,
    rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr, programs: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    begin(early)
    program = tl.program_id(0)
    row = program.to(tl.int64)
    column = tl.arange(0, block)
    mask = column < size
    count = tl.load(counts + program) + 1
    half = (count & 1) * ranks
    values = tl.load(x + row * size + column, mask, 0.0)
    for peer in tl.static_range(ranks):
        if peer != rank:
            theirs = place_of(arrivals[peer], x)
            tl.store(theirs + ((half + rank) * rows + row) * size + column, values, mask)
    before = tl.load(residual + row * size + column, mask, 0.0)
    factors = tl.load(weight + column, mask, 0.0)
    meet(addresses, count, program, 0, rank, ranks, lanes, programs)
    spot = (half * rows + row) * size + column
    total = _sum_of_arrived(values, place_of(arrivals[rank], x), spot, rows * size, mask, rank, ranks)
    _normalize(total + before.to(tl.float32), factors, residual, out, row, column, mask, size, eps)
    tl.store(counts + program, count)


@triton.jit(do_not_specialize=["tokens", "turns"])
def _sum_in_turns(
    x, residual, weight, out, addresses, arrivals, counts, tokens, turns, size, rows, begins, most, eps,
    block: tl.constexpr, together: tl.constexpr, rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr,
    programs: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The first program, and the first row of `arrivals`, are `begins`; there is room for `most` programs.

    A program has four places for what arrives, and sends to the next one before it waits for the last it has sent
    to. Who has seen the flag of a turn knows that its sender has read all but what came in the last two turns.
    """
    begin(early)
    program = begins + tl.program_id(0)
    column = tl.arange(0, block)
    mask = column < size
    count = tl.load(counts + program) + 1
    row = tl.program_id(0).to(tl.int64) * together
    _send_rows(
        x, arrivals, row, tokens, count, program, most, begins, rows, size, column, mask, together, rank, ranks
    )
    raise_flags(addresses, count, program, 0, rank, ranks, lanes, programs)
    for turn in range(turns):
        following = row + tl.num_programs(0) * together
        if turn + 1 < turns:
            _send_rows(
                x, arrivals, following, tokens, count + 1, program, most, begins, rows, size, column, mask,
                together, rank, ranks,
            )  # fmt: skip
            raise_flags(addresses, count + 1, program, 0, rank, ranks, lanes, programs)
        await_flags(addresses, count, program, 0, rank, ranks, lanes, programs)
        place = _turn_place(count, program, most, begins, rows, together, ranks)
        for part in tl.static_range(together):
            inside = mask & (row + part < tokens)
            values = tl.load(x + (row + part) * size + column, inside, 0.0)
            spot = (place + part) * size + column
            mine = place_of(arrivals[rank], x)
            total = _sum_of_arrived(values, mine, spot, rows * size, inside, rank, ranks)
            add_and_normalize(total, residual, weight, out, row + part, column, inside, size, eps)
        row = following
        count += 1
    tl.store(counts + program, count - 1)


@triton.jit
def _turn_place(count, program, most, begins, rows, together: tl.constexpr, ranks: tl.constexpr):
    """The row of `arrivals`, of rank 0, where what a program sends the `count`-th time begins."""
    half, upper = (count & 1).to(tl.int64), (count >> 1) & 1
    return half * ranks * rows + begins + (upper * most + program - begins) * together


@triton.jit
def _send_rows(
    x, arrivals, row, tokens, count, program, most, begins, rows, size, column, mask, together: tl.constexpr,
    rank: tl.constexpr, ranks: tl.constexpr,
):  # fmt: skip
    place = _turn_place(count, program, most, begins, rows, together, ranks) + rank * rows
    for part in tl.static_range(together):
        inside = mask & (row + part < tokens)
        values = tl.load(x + (row + part) * size + column, inside, 0.0)
        for peer in tl.static_range(ranks):
            if peer != rank:
                tl.store(place_of(arrivals[peer], x) + (place + part) * size + column, values, inside)


@triton.jit
def _sum_of_arrived(own, mine, spot, stride, mask, rank: tl.constexpr, ranks: tl.constexpr):
    """`own`, and what came to `mine`, rank 0's at `spot`, and so on: in one order, so all hold the same bits."""
    total = tl.zeros(own.shape, tl.float32)
    for peer in tl.static_range(ranks):
        if peer == rank:
            total += own.to(tl.float32)
        else:
            total += arrived(mine + spot + peer * stride, mask)
    return total


@triton.jit
def _sum_in_two(
    x, residual, weight, out, addresses, arrivals, sums, counts, tokens, size, rows, eps, block: tl.constexpr,
    rank: tl.constexpr, ranks: tl.constexpr, lanes: tl.constexpr, programs: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """A program has as many neighbouring rows as there are ranks: rank i sums row i of them."""
    begin(early)
    program = tl.program_id(0)
    group = program.to(tl.int64)
    column = tl.arange(0, block)
    mask = column < size
    count = tl.load(counts + program) + 1
    half = count & 1
    for peer in tl.static_range(ranks):
        row = group * ranks + peer
        values = tl.load(x + row * size + column, mask & (row < tokens), 0.0)
        theirs = place_of(arrivals[peer], x)
        tl.store(theirs + ((half * ranks + rank) * rows + group) * size + column, values, mask)
    meet(addresses, count, program, 0, rank, ranks, lanes, programs)
    total = tl.zeros((block,), tl.float32)
    mine = place_of(arrivals[rank], x)
    for peer in tl.static_range(ranks):
        total += arrived(mine + ((half * ranks + peer) * rows + group) * size + column, mask)
    total = total.to(out.dtype.element_ty)
    place = (half * ranks * rows + group * ranks) * size + column
    for peer in tl.static_range(ranks):
        tl.store(place_of(sums[peer], x) + place + rank * size, total, mask)
    meet(addresses, count, program, 1, rank, ranks, lanes, programs)
    for part in tl.static_range(ranks):
        row = group * ranks + part
        inside = mask & (row < tokens)
        add_and_normalize(
            arrived(place_of(sums[rank], x) + place + part * size, inside),
            residual,
            weight,
            out,
            row,
            column,
            inside,
            size,
            eps,
        )
    tl.store(counts + program, count)


@triton.jit
def add_and_normalize(total, residual, weight, out, row, column, mask, size, eps):
    """As `minisgl.kernel.layers.add_rms_norm`, of one row whose summand is `total`."""
    total += tl.load(residual + row * size + column, mask, 0.0).to(tl.float32)
    factors = tl.load(weight + column, mask, 0.0)
    _normalize(total, factors, residual, out, row, column, mask, size, eps)


@triton.jit
def _normalize(total, factors, residual, out, row, column, mask, size, eps):
    """The same of what has been added up, with what the norm multiplies by."""
    rounded = total.to(residual.dtype.element_ty)
    tl.store(residual + row * size + column, rounded, mask)
    total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total) / size + eps)
    scaled = total * scale * factors.to(tl.float32)
    tl.store(out + row * size + column, scaled.to(out.dtype.element_ty), mask)


def _warps(size: int) -> int:
    """Threads with 8 numbers each: a store of 16 bytes, the widest."""
    return int(min(max(triton.next_power_of_2(size) // 256, 1), 16))
