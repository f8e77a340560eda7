"""The two ends of a decode step that runs without the host: what to read, and which token comes next.

The references are `minisgl.engine.rows` and `minisgl.engine.sampler`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

VOCAB_BLOCK = 4096
"""Logits that one program reads."""


class DecodeInput(NamedTuple):
    """What the model and the attention read in a decode step of D rows."""

    tokens: Tensor
    """int64 [D], as are `positions` and `slots`."""
    positions: Tensor
    slots: Tensor
    lengths: Tensor
    """int32 [D]: tokens of each row, this step's included."""
    tables: Tensor
    """int32 [D, pages]: each row's pages, valid as far as it has tokens."""


def advance(
    rows: Tensor, last_tokens: Tensor, lengths: Tensor, block_table: Tensor, page_size: int
) -> DecodeInput:
    """Gather the input of `rows`, int64 [D], and add one to their lengths, but to the last row's: it is padding.

    last_tokens and lengths int64 [rows], block_table int32 [rows, pages], of every row of the request table.
    """
    count, width = rows.shape[0], block_table.shape[1]
    tokens, positions, slots = torch.empty((3, count), dtype=torch.int64, device=rows.device)
    made = DecodeInput(
        tokens,
        positions,
        slots,
        torch.empty(count, dtype=torch.int32, device=rows.device),
        torch.empty((count, width), dtype=torch.int32, device=rows.device),
    )
    padding = last_tokens.shape[0] - 1
    _advance[(count,)](
        rows, last_tokens, lengths, block_table, *made, width, padding, page_size, 128, early(), launch_pdl=early()
    )
    return made


@triton.jit
def _advance(
    rows, last_tokens, all_lengths, block_table, tokens, positions, slots, lengths, tables, width, padding,
    page_size: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    begin(early)
    index = tl.program_id(0)
    row = tl.load(rows + index)
    position = tl.load(all_lengths + row)
    tl.store(tokens + index, tl.load(last_tokens + row))
    tl.store(positions + index, position)
    tl.store(lengths + index, (position + 1).to(tl.int32))
    page = tl.load(block_table + row * width + position // page_size).to(tl.int64)
    tl.store(slots + index, page * page_size + position % page_size)
    tl.store(all_lengths + row, tl.where(row == padding, 0, position + 1))
    pages = position // page_size + 1
    for first in range(0, pages, block):
        column = first + tl.arange(0, block)
        entries = tl.load(block_table + row * width + column, column < pages, 0)
        tl.store(tables + index * width + column, entries, column < pages)


def sample(
    logits: Tensor, rows: Tensor, temperature: Tensor, top_k: Tensor, seed: Tensor, generated: Tensor,
    last_tokens: Tensor,
) -> Tensor:  # fmt: skip
    """logits [S, vocab] of `rows`, int64 [S] -> their next tokens, int64 [S], greedy or drawn from all tokens.

    The other arguments are of every row of the request table. Adds one to `generated` of the rows, and writes the
    tokens to `last_tokens`. Reads the logits once, as they are: no float32 copy is made.
    """
    count, vocab = logits.shape
    blocks = triton.cdiv(vocab, VOCAB_BLOCK)
    width = triton.next_power_of_2(blocks)
    most = torch.empty((count, width), dtype=torch.float32, device=logits.device)
    where = torch.empty((count, width), dtype=torch.int32, device=logits.device)
    weight = torch.empty_like(most)
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    _scan[(count, blocks)](
        logits, rows, temperature, most, where, weight, vocab, width, VOCAB_BLOCK, early(), num_warps=8,
        launch_pdl=early(),
    )  # fmt: skip
    _pick[(count,)](
        logits, rows, temperature, top_k, seed, generated, most, where, weight, tokens, last_tokens,
        vocab, blocks, width, VOCAB_BLOCK, early(), num_warps=8, launch_pdl=early(),
    )  # fmt: skip
    return tokens


@triton.jit
def _scan(
    logits, rows, temperature, most, where, weight, vocab, width, block: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """Of each block of a row's logits: the largest, its index, and the sum of exp((logit - largest) / T)."""
    begin(early)
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * block + tl.arange(0, block)
    values = tl.load(logits + index * vocab + column, column < vocab, -float("inf")).to(tl.float32)
    largest, offset = tl.max(values, axis=0, return_indices=True)
    divisor = tl.maximum(tl.load(temperature + tl.load(rows + index)), 1e-37)
    place = index * width + part
    tl.store(most + place, largest)
    tl.store(where + place, part * block + offset)
    tl.store(weight + place, tl.sum(tl.exp((values - largest) / divisor)))


@triton.jit
def _pick(
    logits, rows, temperature, top_k, seed, generated, most, where, weight, tokens, last_tokens,
    vocab, blocks, width: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The token at which the cumulated probability passes a draw: first its block, then its place there."""
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    divisor = tl.load(temperature + row)
    part = tl.arange(0, width)
    inside = part < blocks
    each = tl.load(most + index * width + part, inside, -float("inf"))
    largest, offset = tl.max(each, axis=0, return_indices=True)
    count = tl.load(generated + row)
    token = tl.load(where + index * width + offset).to(tl.int64)
    if (divisor > 0) & (tl.load(top_k + row) != 1):
        divisor = tl.maximum(divisor, 1e-37)
        share = tl.load(weight + index * width + part, inside, 0.0) * tl.exp((each - largest) / divisor)
        share = tl.where(inside, share, 0.0)
        cumulated = tl.cumsum(share, axis=0)
        target = _uniform(tl.load(seed + row), count) * tl.sum(share)
        chosen = tl.minimum(tl.sum((cumulated <= target).to(tl.int32)), blocks - 1)
        target -= tl.sum(tl.where(part < chosen, share, 0.0))
        column = chosen * block + tl.arange(0, block)
        values = tl.load(logits + index * vocab + column, column < vocab, -float("inf")).to(tl.float32)
        cumulated = tl.cumsum(tl.exp((values - largest) / divisor), axis=0)
        # Rounding may leave the target at the block's end or past it: then it is the last token with any weight.
        target = tl.minimum(target, tl.max(cumulated) * 0.9999999)
        token = (chosen * block + tl.sum((cumulated <= target).to(tl.int32))).to(tl.int64)
    tl.store(tokens + index, token)
    tl.store(last_tokens + row, token)
    tl.store(generated + row, count + 1)


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
