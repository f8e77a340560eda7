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
WALK = 1024
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
    """float32 [S, G]: the largest logit of each group, as `weight` is that of the whole group beside it."""
    weight: Tensor
    peak: Tensor
    """float32 [S]: the largest logit, as `total` is the weight of all."""
    total: Tensor
    floor: Tensor
    """float32 [S]: a logit that no token which top-k and top-p keep is below. Infinite in rows with neither."""
    least: Tensor
    """float32 [S]: the least logit of those tokens. Infinite in rows that draw from all tokens, or are greedy."""


def draw(
    logits: Tensor, rows: Tensor, params: Params, last_tokens: Tensor, instead_of: Draw | None = None
) -> Draw:
    """logits [S, vocab] of `rows`, int64 [S]: chooses the tokens of rows that are greedy or draw from all tokens.

    The other rows' tokens are undefined until `draw_filtered`. Writes the tokens to `last_tokens` of the rows, and
    adds one to their `generated`. Reads the logits once.

    `instead_of`: a draw for the same rows, not filtered yet, which this one overwrites and undoes.
    """
    count, vocab = logits.shape
    groups = triton.cdiv(vocab, GROUP)
    width = max(triton.next_power_of_2(groups), GROUPS)
    begun = instead_of or _undrawn(logits, rows, width)
    _scan[(count, triton.cdiv(groups, GROUPS))](
        logits, rows, params[0], begun.most, begun.weight, vocab, width, GROUPS, GROUP, early(),
        num_warps=2 * GROUPS, launch_pdl=early(),
    )  # fmt: skip
    _pick[(count,)](
        *begun, *params, last_tokens, vocab, groups, width, GROUP, NEGLIGIBLE, False, instead_of is not None,
        early(), num_warps=8, launch_pdl=early(),
    )  # fmt: skip
    return begun


def _undrawn(logits: Tensor, rows: Tensor, width: int) -> Draw:
    """Nothing is drawn yet; `width` is of `most` and `weight`."""
    count = len(rows)
    most, weight = torch.empty((2, count, width), dtype=torch.float32, device=logits.device)
    # Each of its own: Triton compiles kernels anew for tensors that begin at odd addresses.
    of_rows = (torch.empty(count, dtype=torch.float32, device=logits.device) for _ in range(4))
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    return Draw(tokens, logits, rows, most, weight, *of_rows)


def draw_filtered(begun: Draw, params: Params, last_tokens: Tensor, counts: Tensor) -> None:
    """Choose the tokens of the rows with a top-k, a top-p or a min-p: writes them where `draw` writes the others'.

    `counts`: int32 [S or more, VALUES], zeros, and zeros again afterwards.
    """
    count, vocab = begun.logits.shape
    width = begun.most.shape[1]
    groups = triton.cdiv(vocab, GROUP)
    programs = (count, triton.cdiv(groups, GROUPS))
    temperature, top_p, min_p, top_k, *_ = params
    _count[programs](
        begun.logits, begun.most, begun.floor, counts, vocab, width, GROUPS, GROUP, early(), num_warps=2 * GROUPS,
        launch_pdl=early(),
    )  # fmt: skip
    _rank[(count,)](
        begun.logits, begun.rows, begun.peak, begun.total, begun.floor, begun.least, temperature, top_p, top_k,
        counts, WALK, early(), num_warps=8, launch_pdl=early(),
    )  # fmt: skip
    _weigh[programs](
        begun.logits, begun.rows, begun.most, begun.weight, begun.peak, begun.least, temperature, min_p, vocab,
        width, GROUPS, GROUP, early(), num_warps=2 * GROUPS, launch_pdl=early(),
    )  # fmt: skip
    _pick[(count,)](
        *begun, *params, last_tokens, vocab, groups, width, GROUP, NEGLIGIBLE, True, False, early(), num_warps=8,
        launch_pdl=early(),
    )  # fmt: skip


@triton.jit
def _scan(
    logits, rows, temperature, most, weight, vocab, width, groups: tl.constexpr, group: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Of each group: the largest logit, and the weight of all beside it."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    values = _read_group(logits + index * vocab, part, vocab, group, -float("inf")).to(tl.float32)
    largest = tl.max(values, axis=1)
    tl.store(most + index * width + part, largest)
    degrees = tl.load(temperature + tl.load(rows + index))
    if degrees > 0:
        weights = _weights(values, tl.maximum(largest, -3.4028234663852886e38)[:, None], degrees)
        tl.store(weight + index * width + part, tl.sum(weights, axis=1))


@triton.jit
def _count(
    logits, most, floor, counts, vocab, width, groups: tl.constexpr, group: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """How often each value from `floor` up occurs in a row."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    bound = tl.load(floor + index)
    if tl.max(tl.load(most + index * width + part)) >= bound:
        values = _read_group(logits + index * vocab, part, vocab, group, -float("inf"))
        places = counts + index * 65536 + _bucket(values)
        tl.atomic_add(places, 1, values.to(tl.float32) >= bound, sem="relaxed")


@triton.jit
def _rank(
    logits, rows, peak, total, floor, least, temperature, top_p, top_k, counts, size: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """The least logit that top-k, and top-p among those, keep. Leaves zeros in `counts`."""
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    bound = tl.load(floor + index)
    if bound < float("inf"):
        kind: tl.constexpr = logits.dtype.element_ty
        row = tl.load(rows + index)
        degrees, largest = tl.load(temperature + row), tl.load(peak + index)
        first, last = _bucket(largest.to(kind)), _bucket(bound.to(kind))
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
        for start in range(first // 16 * 16, last + 1, size):
            places = tl.multiple_of(start, 16) + tl.arange(0, size)
            tl.store(counts + places, 0, places < 65536)


@triton.jit
def _walk(
    counts, first, last, k, share, largest, degrees, kind: tl.constexpr, size: tl.constexpr
):  # fmt: skip
    """Down from the largest value, at place `first`, to `last`, as long as fewer than `k` tokens come before, and
    less than `share`. Returns the last place with a token, and the weight of the tokens, `k` at most.
    """
    place, start = first, first // 16 * 16
    count = 0
    weight = tl.full((), 0.0, tl.float64)
    taken = tl.full((), 0.0, tl.float64)
    while (start <= last) & (count < k) & ((weight < share) | (start <= first)):
        places = tl.multiple_of(start, 16) + tl.arange(0, size)
        number = tl.load(counts + places, places < 65536, 0)
        here = tl.sum(number)
        if here > 0:  # small numbers of either sign are many, and seldom occur
            each = _weights(_value(places, kind), largest, degrees)
            each = tl.where(number > 0, each, 0.0).to(tl.float64)
            heavy = number.to(tl.float64) * each
            before = count + tl.cumsum(number, axis=0) - number
            kept = (number > 0) & (places <= last) & (before < k)
            kept &= weight + tl.cumsum(heavy, axis=0) - heavy < share
            place = tl.maximum(place, tl.max(tl.where(kept, places, 0)))
            taken += tl.sum(tl.where(kept, tl.minimum(number, k - before), 0).to(tl.float64) * each)
            count += here
            weight += tl.sum(heavy)
        start += size
    return place, taken


@triton.jit
def _weigh(
    logits, rows, most, weight, peak, least, temperature, min_p, vocab, width, groups: tl.constexpr,
    group: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Of each group of a filtered row: the weight of the tokens that are kept, now beside the row's largest."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * groups + tl.arange(0, groups)
    lowest = tl.load(least + index)
    largest_here = tl.max(tl.load(most + index * width + part))
    if lowest < float("inf"):
        kept = tl.zeros((groups,), tl.float32)
        if largest_here >= lowest:
            row = tl.load(rows + index)
            degrees, p = tl.load(temperature + row), tl.load(min_p + row)
            values = _read_group(logits + index * vocab, part, vocab, group, -float("inf")).to(tl.float32)
            kept = tl.sum(_kept(values, tl.load(peak + index), lowest, degrees, p), axis=1)
        tl.store(weight + index * width + part, kept)


@triton.jit
def _pick(
    tokens, logits, rows, most, weight, peak, total, floor, least, temperature, top_p, min_p, top_k, seed,
    generated, last_tokens, vocab, groups, width: tl.constexpr, group: tl.constexpr, negligible: tl.constexpr,
    filtered: tl.constexpr, again: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The largest logit, or the one at which the cumulated weight passes a draw: its group, then its place there.

    Of the filtered rows; or of the others, and for the filtered ones what the kernels between the two need.
    `again`: the token that was drawn before does not count.
    """
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    degrees, k, p, m = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    part = tl.arange(0, width)
    inside = part < groups
    each = tl.load(most + index * width + part, inside, -float("inf"))
    largest = tl.max(each)
    share = tl.load(weight + index * width + part, inside, 0.0)  # undefined in greedy rows
    if not filtered:
        share = tl.where(inside, share * _weights(each, largest, degrees), 0.0)
    is_drawn = (degrees > 0) & (k != 1)
    is_ranked = is_drawn & ((k > 0) | (p < 1))
    is_filtered = is_ranked | (is_drawn & (m > 0))
    if is_filtered == filtered:
        count = tl.load(generated + row)
        if again:
            count -= 1
        target = _uniform(tl.load(seed + row), count) * tl.sum(share)
        place = tl.min(tl.where(each == largest, part, width))
        if is_drawn:
            place = _passed(share, target)
        place = tl.minimum(place, groups - 1)  # as is the token: logits that are not numbers lead nowhere
        target -= tl.sum(tl.where(part < place, share, 0.0))
        values = _read_group(logits + index * vocab, place, vocab, group, -float("inf")).to(tl.float32)
        if is_drawn:
            if filtered:
                weights = _kept(values, largest, tl.load(least + index), degrees, m)
            else:
                weights = _weights(values, largest, degrees)
            offset = _passed(weights, target)
        else:
            offset = tl.min(tl.where(values == largest, tl.arange(0, group), group))
        token = tl.minimum(place * group + offset, vocab - 1).to(tl.int64)
        tl.store(tokens + index, token)
        tl.store(last_tokens + row, token)
        tl.store(generated + row, count + 1)
    if not filtered:
        bound = largest - negligible * degrees
        if is_ranked & (p < 1):
            # All tokens below it, however many, together weigh less than top-p leaves out.
            bound = tl.maximum(bound, largest + degrees * tl.log((1 - p) * tl.sum(share) / vocab))
        if is_ranked & (k > 0):
            # The k-th largest of the pairs of groups: k tokens are at or above it.
            pairs = tl.max(tl.reshape(each, (width // 2, 2)), axis=1)
            as_large = tl.sum((pairs[None, :] >= pairs[:, None]).to(tl.int32), axis=1)
            bound = tl.maximum(bound, tl.max(tl.where(as_large >= k, pairs, -float("inf"))))
        # Rounding keeps the order: no logit that was at or above the bound is below it then.
        bound = bound.to(logits.dtype.element_ty).to(tl.float32)
        tl.store(floor + index, tl.where(is_ranked, bound, float("inf")))
        tl.store(least + index, tl.where(is_filtered, bound, float("inf")))
        tl.store(peak + index, largest)
        tl.store(total + index, tl.sum(share))


# ---- logits ----


@triton.jit
def _read_group(logits, part, vocab, group: tl.constexpr, other: tl.constexpr):
    """The logits of groups `part`: [group] of one, [groups, group] of several."""
    columns = tl.expand_dims(part * group, -1) + tl.arange(0, group)
    return tl.load(logits + columns, columns < vocab, other)


@triton.jit
def _weights(values, largest, degrees):
    return tl.exp2((values - largest) * (1.4426950408889634 / tl.maximum(degrees, 1e-37)))


@triton.jit
def _kept(values, largest, least, degrees, min_p):
    """The weights of the tokens that are kept; 0 for the others."""
    weights = _weights(values, largest, degrees)
    return tl.where((values >= least) & (weights >= min_p), weights, 0.0)


@triton.jit
def _bucket(value):
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
