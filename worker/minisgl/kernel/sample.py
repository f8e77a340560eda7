"""The next token of every row, from logits of 16 bits: nothing is sorted, copied to float32 or sent to the host.

Sixteen bits have 65,536 values. Counting how often each occurs in a row takes the place of sorting the row: from
the largest value down, counts add up to top-k, and counts times weights to top-p. Integers add up to the same sum
in any order, so equal logits give equal tokens.

The reference is `minisgl.engine.sampler`. A token's weight is ``exp((logit - largest) / temperature)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

VALUES = 65_536
"""Of 16 bits."""
GROUP = 1024
"""Neighbouring logits whose largest and whose weight are kept."""
GROUPS = 4
"""Groups that one program reads."""
WALK = 4096
"""Values whose counts are read at once."""
NEGLIGIBLE = 30.0
"""A logit further below the largest, in temperatures, weighs nothing: a vocabulary of them is below the step of a
random number, ``2 ** -24``."""


Params = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The columns of `minisgl.engine.sampler.SamplingRows`, in their order, of every row of the request table."""


class Draw(NamedTuple):
    """What `draw` leaves to `draw_filtered`, of S rows with G groups each."""

    tokens: Tensor
    """int64 [S]: the next tokens."""
    logits: Tensor
    rows: Tensor
    most: Tensor
    """float32 [S, G]: the largest logit of each group; `where`, int32, is its token."""
    where: Tensor
    weight: Tensor
    """float32 [S, G]: of the whole group, beside its own largest logit."""
    peak: Tensor
    """float32 [S]: the largest logit, as `total` is the weight of all, and `least` a logit that no token which
    passes the row's filters is below."""
    total: Tensor
    least: Tensor


def draw(logits: Tensor, rows: Tensor, params: Params, last_tokens: Tensor) -> Draw:
    """logits [S, vocab] of `rows`, int64 [S]: chooses the tokens of rows that are greedy or draw from all tokens.

    The other rows' tokens are undefined until `draw_filtered`. Writes the tokens to `last_tokens` of the rows, and
    adds one to their `generated`. Reads the logits once.
    """
    count, vocab = logits.shape
    groups = triton.cdiv(vocab, GROUP)
    width = max(triton.next_power_of_2(groups), GROUPS)
    most, weight = torch.empty((2, count, width), dtype=torch.float32, device=logits.device)
    where = torch.empty((count, width), dtype=torch.int32, device=logits.device)
    peak, total, least = torch.empty((3, count), dtype=torch.float32, device=logits.device)
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    begun = Draw(tokens, logits, rows, most, where, weight, peak, total, least)
    _scan[(count, triton.cdiv(groups, GROUPS))](
        logits, rows, params[0], most, where, weight, vocab, width, GROUPS, GROUP, early(), num_warps=2 * GROUPS,
        launch_pdl=early(),
    )  # fmt: skip
    _pick[(count,)](
        *begun, *params, last_tokens, vocab, groups, width, GROUP, NEGLIGIBLE, False, early(), num_warps=8,
        launch_pdl=early(),
    )  # fmt: skip
    return begun


def draw_filtered(begun: Draw, params: Params, last_tokens: Tensor, counts: Tensor) -> None:
    """Choose the tokens of the rows with a top-k, a top-p or a min-p: writes them where `draw` writes the others'.

    `counts`: int32 [S or more, VALUES], zeros, and zeros again afterwards.
    """
    count, vocab = begun.logits.shape
    width = begun.most.shape[1]
    groups = triton.cdiv(vocab, GROUP)
    programs = (count, triton.cdiv(groups, GROUPS))
    temperature, top_p, _, top_k, *_ = params
    _count[programs](
        begun.logits, begun.rows, begun.most, begun.least, temperature, top_p, top_k, counts, vocab, width, GROUPS,
        GROUP, early(), num_warps=2 * GROUPS, launch_pdl=early(),
    )  # fmt: skip
    _rank[(count,)](
        begun.logits, begun.rows, begun.peak, begun.total, begun.least, temperature, top_p, top_k, counts, WALK,
        early(), num_warps=16, launch_pdl=early(),
    )  # fmt: skip
    _weigh[programs](
        begun.logits, begun.rows, begun.most, begun.weight, begun.peak, begun.least, *params[:4], vocab, width,
        GROUPS, GROUP, early(), num_warps=2 * GROUPS, launch_pdl=early(),
    )  # fmt: skip
    _pick[(count,)](
        *begun, *params, last_tokens, vocab, groups, width, GROUP, NEGLIGIBLE, True, early(), num_warps=8,
        launch_pdl=early(),
    )  # fmt: skip


@triton.jit
def _scan(
    logits, rows, temperature, most, where, weight, vocab, width, groups: tl.constexpr, group: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Of each group: the largest logit, its token, and the weight of all beside it."""
    begin(early)
    index, part, values, _ = _read(logits, vocab, groups, group)
    largest, offset = tl.max(values, axis=1, return_indices=True)
    tl.store(most + index * width + part, largest)
    tl.store(where + index * width + part, part * group + offset)
    degrees = tl.load(temperature + tl.load(rows + index))
    if degrees > 0:
        weights = _weights(values, tl.maximum(largest, -3.4028234663852886e38)[:, None], degrees)
        tl.store(weight + index * width + part, tl.sum(weights, axis=1))


@triton.jit
def _count(
    logits, rows, most, least, temperature, top_p, top_k, counts, vocab, width, groups: tl.constexpr,
    group: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """How often each value from `least` up occurs in a row."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    row = tl.load(rows + index)
    bound = tl.load(least + index)
    if _is_ranked(row, temperature, top_p, top_k) & (tl.max(tl.load(most + index * width + part)) >= bound):
        column = part[:, None] * group + tl.arange(0, group)[None, :]
        inside = column < vocab
        values = tl.load(logits + index * vocab + column, inside, 0.0)
        places = counts + index * 65536 + _place(values)
        tl.atomic_add(places, 1, inside & (values.to(tl.float32) >= bound), sem="relaxed")


@triton.jit
def _rank(
    logits, rows, peak, total, least, temperature, top_p, top_k, counts, size: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """Raise `least` to the least logit that top-k, and top-p among those, keep. Leaves zeros in `counts`."""
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    if _is_ranked(row, temperature, top_p, top_k):
        kind: tl.constexpr = logits.dtype.element_ty
        degrees, largest = tl.load(temperature + row), tl.load(peak + index)
        first, last = _place(largest.to(kind)), _place(tl.load(least + index).to(kind))
        counts += index * 65536
        share = tl.load(total + index).to(tl.float64)
        p = tl.load(top_p + row).to(tl.float64)
        k = tl.load(top_k + row)
        k = tl.where(k > 0, tl.minimum(k, 1 << 30), 1 << 30).to(tl.int32)
        place = last
        if k < 1 << 30:
            place, share = _walk(counts, first, last, k, float("inf"), largest, degrees, kind, size)
        if p < 1:
            place, _ = _walk(counts, first, place, k, p * share, largest, degrees, kind, size)
        tl.store(least + index, _value(place, kind))
        tl.debug_barrier()  # every count has been read
        for start in range(first, last + 1, size):
            places = start + tl.arange(0, size)
            tl.store(counts + places, 0, places <= last)


@triton.jit
def _walk(
    counts, first, last, k, share, largest, degrees, kind: tl.constexpr, size: tl.constexpr
):  # fmt: skip
    """Down from the largest value, at place `first`, to `last`, as long as fewer than `k` tokens come before, and
    less than `share`. Returns the last place with a token, and the weight of the tokens, `k` at most.
    """
    place, start = first, first
    count = 0
    weight = tl.full((), 0.0, tl.float64)
    taken = tl.full((), 0.0, tl.float64)
    while (start <= last) & (count < k) & ((weight < share) | (start == first)):
        places = start + tl.arange(0, size)
        number = tl.load(counts + places, places <= last, 0)
        each = _weights(_value(places, kind), largest, degrees)
        each = tl.where(number > 0, each, 0.0).to(tl.float64)
        here = number.to(tl.float64) * each
        before = count + tl.cumsum(number, axis=0) - number
        kept = (number > 0) & (before < k) & (weight + tl.cumsum(here, axis=0) - here < share)
        place = tl.maximum(place, tl.max(tl.where(kept, places, 0)))
        taken += tl.sum(tl.where(kept, tl.minimum(number, k - before), 0).to(tl.float64) * each)
        count += tl.sum(number)
        weight += tl.sum(here)
        start += size
    return place, taken


@triton.jit
def _weigh(
    logits, rows, most, weight, peak, least, temperature, top_p, min_p, top_k, vocab, width, groups: tl.constexpr,
    group: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Of each group of a filtered row: the weight of the tokens that are kept, now beside the row's largest."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    row = tl.load(rows + index)
    if _is_filtered(row, temperature, top_p, min_p, top_k):
        largest, lowest = tl.load(peak + index), tl.load(least + index)
        kept = tl.zeros((groups,), tl.float32)
        if tl.max(tl.load(most + index * width + part)) >= lowest:
            _, _, values, _ = _read(logits, vocab, groups, group)
            kept = tl.sum(_kept(values, largest, lowest, tl.load(temperature + row), tl.load(min_p + row)), axis=1)
        tl.store(weight + index * width + part, kept)


@triton.jit
def _pick(
    tokens, logits, rows, most, where, weight, peak, total, least, temperature, top_p, min_p, top_k, seed,
    generated, last_tokens, vocab, groups, width: tl.constexpr, group: tl.constexpr, negligible: tl.constexpr,
    filtered: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The token at which the cumulated weight passes a draw: first its group, then its place there.

    Of the filtered rows; or of the others, and for the filtered ones `peak`, `total`, and as `least`, for now, a
    logit that no token which top-k and top-p keep, and which weighs anything, is below.
    """
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    degrees, k = tl.load(temperature + row), tl.load(top_k + row)
    part = tl.arange(0, width)
    inside = part < groups
    each = tl.load(most + index * width + part, inside, -float("inf"))
    largest, offset = tl.max(each, axis=0, return_indices=True)
    share = tl.load(weight + index * width + part, inside, 0.0)  # undefined in greedy rows
    if not filtered:
        share = tl.where(inside, share * _weights(each, largest, degrees), 0.0)
    chosen = _is_filtered(row, temperature, top_p, min_p, top_k)
    if chosen == filtered:
        count = tl.load(generated + row)
        token = tl.load(where + index * width + offset).to(tl.int64)
        if (degrees > 0) & (k != 1):
            target = _uniform(tl.load(seed + row), count) * tl.sum(share)
            place = _passed(share, target)
            target -= tl.sum(tl.where(part < place, share, 0.0))
            column = place * group + tl.arange(0, group)
            values = tl.load(logits + index * vocab + column, column < vocab, -float("inf")).to(tl.float32)
            if filtered:
                weights = _kept(values, largest, tl.load(least + index), degrees, tl.load(min_p + row))
            else:
                weights = _weights(values, largest, degrees)
            token = (place * group + _passed(weights, target)).to(tl.int64)
        tl.store(tokens + index, token)
        tl.store(last_tokens + row, token)
        tl.store(generated + row, count + 1)
    elif not filtered:
        tl.store(peak + index, largest)
        tl.store(total + index, tl.sum(share))
        bound = largest - negligible * degrees
        p = tl.load(top_p + row)
        if p < 1:
            # All tokens below it, however many, together weigh less than top-p leaves out.
            bound = tl.maximum(bound, largest + degrees * tl.log((1 - p) * tl.sum(share) / vocab))
        if k > 0:
            # The k-th of the groups' largest: k tokens are at or above it.
            as_large = tl.zeros((width,), tl.int32)
            for start in range(0, groups, 32):
                other = start + tl.arange(0, 32)
                other = tl.load(most + index * width + other, other < groups, -float("inf"))
                as_large += tl.sum((other[None, :] >= each[:, None]).to(tl.int32), axis=1)
            bound = tl.maximum(bound, tl.max(tl.where(inside & (as_large >= k), each, -float("inf"))))
        # Rounding keeps the order: no logit that was at or above the bound is below it then.
        tl.store(least + index, bound.to(logits.dtype.element_ty).to(tl.float32))


# ---- rows ----


@triton.jit
def _is_ranked(row, temperature, top_p, top_k):
    """Whether the row draws from the most likely tokens."""
    k = tl.load(top_k + row)
    return (tl.load(temperature + row) > 0) & (k != 1) & ((k > 0) | (tl.load(top_p + row) < 1))


@triton.jit
def _is_filtered(row, temperature, top_p, min_p, top_k):
    """Whether the row draws from fewer than all tokens."""
    k = tl.load(top_k + row)
    some = (k > 0) | (tl.load(top_p + row) < 1) | (tl.load(min_p + row) > 0)
    return (tl.load(temperature + row) > 0) & (k != 1) & some


# ---- logits ----


@triton.jit
def _read(logits, vocab, groups: tl.constexpr, group: tl.constexpr):
    """This program's row, its groups, their logits [groups, group] in float32, and which of them there are."""
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    column = part[:, None] * group + tl.arange(0, group)[None, :]
    inside = column < vocab
    return index, part, tl.load(logits + index * vocab + column, inside, -float("inf")).to(tl.float32), inside


@triton.jit
def _weights(values, largest, degrees):
    return tl.exp2((values - largest) * (1.4426950408889634 / tl.maximum(degrees, 1e-37)))


@triton.jit
def _kept(values, largest, least, degrees, min_p):
    """The weights of the tokens that are kept; 0 for the others."""
    weights = _weights(values, largest, degrees)
    return tl.where((values >= least) & (weights >= min_p), weights, 0.0)


@triton.jit
def _place(value):
    """The place of a number of 16 bits among all of them, in descending order."""
    bits = value.to(tl.int16, bitcast=True).to(tl.int32)
    return tl.where(bits < 0, 0x8000 + (bits & 0x7FFF), 0x7FFF - bits)


@triton.jit
def _value(place, kind: tl.constexpr):
    """The number of type `kind` at `place`, in float32."""
    bits = tl.where(place < 0x8000, 0x7FFF - place, place)
    return bits.to(tl.int16).to(kind, bitcast=True).to(tl.float32)


# ---- draws ----


@triton.jit
def _passed(weights, target):
    """How many cumulated weights the target has passed: it stops at one with a weight, whatever rounding does."""
    cumulated = tl.cumsum(weights, axis=0)
    target = tl.maximum(tl.minimum(target, tl.max(cumulated) * 0.9999999), 0.0)
    return tl.sum((cumulated <= target).to(tl.int32))


@triton.jit
def _uniform(seed, counter):
    """As `minisgl.engine.sampler.uniform`."""
    golden: tl.constexpr = -7046029254386353131
    state = _mix(seed) + (counter + 1) * golden
    return ((_mix(state) >> 40) & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _mix(z):
    first: tl.constexpr = -4658895280553007687
    second: tl.constexpr = -7723592293110705685
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * first
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * second
    return z ^ ((z >> 31) & 0x1FFFFFFFF)
