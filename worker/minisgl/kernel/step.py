"""What a decode step that runs without the host reads. The reference is `minisgl.engine.rows`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minisgl.kernel.launch import begin, early


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
