"""Logits changed before the choice: a bias, penalties, a grammar's mask; and the count of what was chosen.

A program whose row asks for nothing ends at once. The reference is `minisgl.engine.shaping`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early

BLOCK = 4096
"""Logits that one program changes."""

Table = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The columns of `minisgl.engine.shaping.ShapingTable`, in their order."""


def shape(logits: Tensor, rows: Tensor, table: Table) -> None:
    """Change logits [S, vocab], contiguous and of 16 bits, of `rows`, int64 [S], in place."""
    count, vocab = logits.shape
    kinds, numbers, seen, bias_ids, biases, masks = table
    _bias[(count,)](logits, rows, kinds, bias_ids, biases, vocab, bias_ids.shape[1], early(), launch_pdl=early())
    _shape[(count, triton.cdiv(vocab, BLOCK))](
        logits, rows, kinds, numbers, seen, masks, vocab, masks.shape[1], torch.finfo(logits.dtype).max, BLOCK,
        early(), num_warps=8, launch_pdl=early(),
    )  # fmt: skip


def count(tokens: Tensor, rows: Tensor, table: Table) -> None:
    """`tokens` have been chosen for `rows`, both int64 [S]."""
    size = len(rows)
    kinds, _, seen, *_ = table
    _count_tokens[(triton.cdiv(size, 128),)](
        tokens, rows, kinds, seen, size, seen.shape[1], 128, early(), launch_pdl=early()
    )


@triton.jit
def _bias(logits, rows, kinds, bias_ids, biases, vocab, most: tl.constexpr, early: tl.constexpr):
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    if (tl.load(kinds + row) & 2) != 0:
        place = row * most + tl.arange(0, most)
        token = tl.load(bias_ids + place)
        inside = (token >= 0) & (token < vocab)
        target = logits + index * vocab + token
        value = tl.load(target, inside, 0.0).to(tl.float32) + tl.load(biases + place)
        tl.store(target, value.to(logits.dtype.element_ty), inside)


@triton.jit
def _shape(
    logits, rows, kinds, numbers, seen, masks, vocab, words, largest: tl.constexpr, block: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """Penalties, then the mask."""
    begin(early)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index)
    kind = tl.load(kinds + row)
    if (kind & 5) != 0:
        column = tl.program_id(1) * block + tl.arange(0, block)
        inside = column < vocab
        target = logits + index * vocab + column
        values = tl.load(target, inside, 0.0).to(tl.float32)
        if (kind & 1) != 0:
            presence, frequency = tl.load(numbers + 3 * row), tl.load(numbers + 3 * row + 1)
            repetition = tl.load(numbers + 3 * row + 2)
            here = tl.load(seen + row * vocab + column, inside, 0)
            repeated = tl.where(values > 0, values / repetition, values * repetition)
            times = (here >> 1).to(tl.float32)
            values = tl.where(here > 0, repeated, values)
            values -= frequency * times + tl.where(times > 0, presence, 0.0)
            values = tl.minimum(tl.maximum(values, -largest), largest)
        if (kind & 4) != 0:
            word = tl.load(masks + row * words + (column >> 5), inside, 0)
            values = tl.where(((word >> (column & 31)) & 1) != 0, values, -float("inf"))
        tl.store(target, values.to(logits.dtype.element_ty), inside)


@triton.jit
def _count_tokens(tokens, rows, kinds, seen, size, vocab, block: tl.constexpr, early: tl.constexpr):
    """Rows differ, but for the padding row's, which is of no kind."""
    begin(early)
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < size
    row = tl.load(rows + index, inside, 0)
    counted = inside & ((tl.load(kinds + row, inside, 0) & 1) != 0)
    target = seen + row * vocab + tl.load(tokens + index, inside, 0)
    tl.store(target, tl.load(target, counted, 0) + 2, counted)
